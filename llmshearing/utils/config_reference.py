"""The reference of every configuration key: `llmshearing.commands.config_reference` under an earlier name."""

from llmshearing import cli
from llmshearing.commands.config_reference import *  # noqa: F403
from llmshearing.commands.config_reference import main

if __name__ == "__main__":
    cli.run(main)
