"""The table of docs/models.md: `llmshearing.commands.family_table` under an earlier name."""

from llmshearing import cli
from llmshearing.commands.family_table import *  # noqa: F403
from llmshearing.commands.family_table import main

if __name__ == "__main__":
    cli.run(main)
