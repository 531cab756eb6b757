"""Run a configuration: prune when it has `model.l0_module`, train otherwise.

    composer train.py CONFIG.yaml [key=value ...]        on the devices of this machine
    llmshearing train CONFIG.yaml [key=value ...]        in one process

Every key: docs/configuration.md

Example:

    composer train.py configs/llama2/7b.yaml data_local=data/mds save_folder=runs/prune max_duration=3200ba
"""

import sys

from llmshearing import cli


def main() -> None:
    """CONFIG.yaml and any number of key=value overrides."""
    words = sys.argv[1:]
    if {"-h", "--help"} & set(words):
        cli.say(__doc__ or "")
        return
    if not words:
        raise ValueError("A configuration is needed: train.py CONFIG.yaml key=value ... (--help says more)")
    from llmshearing.config.reading import load_config  # not above: --help need not wait for torch
    from llmshearing.training import train

    train(load_config(words[0], words[1:]))
