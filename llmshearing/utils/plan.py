"""What a run does and needs: `llmshearing plan` by its earlier name."""

from llmshearing.cli import run
from llmshearing.commands.plan import main

if __name__ == "__main__":
    run(main)
