"""HF models to Composer checkpoints and back: `llmshearing.commands.convert` under an earlier name."""

from llmshearing import cli
from llmshearing.commands.convert import *  # noqa: F403
from llmshearing.commands.convert import main

if __name__ == "__main__":
    cli.run(main)
