"""The checkpoint of a pruning run to the smaller model: `llmshearing prune` by the original's name."""

from llmshearing.cli import run
from llmshearing.commands.prune import prune_and_save_model
from llmshearing.fired import choose


def main() -> None:
    choose("python -m llmshearing.utils.post_pruning_processing", __doc__, prune_and_save_model)


if __name__ == "__main__":
    run(main)
