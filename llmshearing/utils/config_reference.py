"""The reference of every configuration key: `llmshearing config_reference` by its earlier name."""

from llmshearing.cli import run
from llmshearing.commands.config_reference import main

if __name__ == "__main__":
    run(main)
