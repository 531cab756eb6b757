"""`llmshearing.commands` under an earlier name."""

from llmshearing import cli
from llmshearing.commands.check_pruning import *  # noqa: F403
from llmshearing.commands.check_pruning import main

if __name__ == "__main__":
    cli.run(main)
