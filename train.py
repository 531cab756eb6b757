"""Run a configuration: `composer train.py CONFIG.yaml key=value ...`, or plain `python train.py ...`."""

from llmshearing.cli import run


def main() -> None:
    """The command, imported here so that Ctrl-C ends it while it is being imported, too."""
    from llmshearing.commands.train import main as train

    train()


if __name__ == "__main__":
    run(main)
