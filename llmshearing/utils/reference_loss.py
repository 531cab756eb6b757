"""Reference losses of dynamic batch loading: `llmshearing reference_loss` by its earlier name."""

from llmshearing.cli import run
from llmshearing.commands.reference_loss import main

if __name__ == "__main__":
    run(main)
