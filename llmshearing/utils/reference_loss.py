"""Reference losses of dynamic batch loading: `llmshearing.commands.reference_loss` under an earlier name."""

from llmshearing import cli
from llmshearing.commands.reference_loss import *  # noqa: F403
from llmshearing.commands.reference_loss import main

if __name__ == "__main__":
    cli.run(main)
