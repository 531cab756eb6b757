"""Run a configuration: prune when it names a pruning method, train otherwise.

`llmshearing train` runs in one process; `composer train.py` on all devices of a machine, with the same words.
Every key: docs/configuration.md

Example:

    llmshearing train configs/llama2/7b.yaml data_local=data/mds save_folder=runs/prune max_duration=3200ba
    composer train.py configs/llama2/7b.yaml data_local=data/mds save_folder=runs/prune max_duration=3200ba
"""

import sys

from llmshearing import cli


def main() -> None:
    """CONFIG.yaml and any number of key=value overrides."""
    words = sys.argv[1:]
    usage = f"usage: {cli.called_as('train.py')} CONFIG.yaml [key=value ...]"
    if {"-h", "--help"} & set(words):
        cli.say(f"{usage}\n\n{__doc__}\n{cli.DEBUG_HELP}")
        return
    if not words:
        raise ValueError(f"no configuration is given\n{usage}")
    from llmshearing.config.reading import load_config  # not above: --help need not wait for torch
    from llmshearing.training import train

    train(load_config(words[0], words[1:]))
