"""Whether a checkpoint equals an HF model: `llmshearing compare` by the original's name."""

import sys

from llmshearing.cli import run
from llmshearing.commands.compare import compare
from llmshearing.fired import call


def main() -> None:
    call(compare, "python -m llmshearing.utils.test_composer_hf_eq", sys.argv[1:])


if __name__ == "__main__":
    run(main)
