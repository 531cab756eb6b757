"""The table of docs/models.md: `llmshearing family_table` by its earlier name."""

from llmshearing.cli import run
from llmshearing.commands.family_table import main

if __name__ == "__main__":
    run(main)
