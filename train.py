"""Run a configuration: `composer train.py CONFIG.yaml key=value ...`, or plain `python train.py ...`."""

from llmshearing.cli import run
from llmshearing.commands.train import main

if __name__ == "__main__":
    run(main)
