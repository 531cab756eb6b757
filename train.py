"""Run a configuration: `composer train.py CONFIG.yaml key=value ...`, or plain `python train.py ...`.

Prunes when the configuration has `model.l0_module`, trains otherwise. Example:

    python train.py configs/llama2/7b.yaml data_local=data/mds save_folder=runs/prune max_duration=3200ba
"""

import sys

from llmshearing.cli import run


def main() -> None:
    """CONFIG.yaml and any number of key=value overrides."""
    from llmshearing.config.reading import load_config  # not above: Ctrl-C may come during these imports
    from llmshearing.training import train

    arguments = sys.argv[1:]
    if not arguments:
        raise ValueError(
            "train.py needs a configuration: train.py CONFIG.yaml key=value ... (--help says more)"
        )
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(f"{__doc__}\nEvery key: docs/configuration.md\n")
        return
    train(load_config(arguments[0], arguments[1:]))


if __name__ == "__main__":
    run(main)
