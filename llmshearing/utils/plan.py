"""What a run would do and need: `llmshearing.commands.plan` under an earlier name."""

from llmshearing import cli
from llmshearing.commands.plan import *  # noqa: F403
from llmshearing.commands.plan import main

if __name__ == "__main__":
    cli.run(main)
