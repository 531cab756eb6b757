"""HF models to Composer checkpoints and back: `llmshearing convert` and `export` by the original's names."""

from llmshearing.cli import run
from llmshearing.commands.convert import save_composer_to_hf, save_hf_to_composer
from llmshearing.fired import choose


def main() -> None:
    choose("python -m llmshearing.utils.composer_to_hf", __doc__, save_hf_to_composer, save_composer_to_hf)


if __name__ == "__main__":
    run(main)
