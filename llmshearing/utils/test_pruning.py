"""Whether a masked model equals its pruned one: `llmshearing check` by the original's name."""

import sys

from llmshearing.cli import run
from llmshearing.commands.check_pruning import check
from llmshearing.fired import call


def main() -> None:
    call(check, "python -m llmshearing.utils.test_pruning", sys.argv[1:])


if __name__ == "__main__":
    run(main)
