"""Prune a large language model to a smaller shape, then continue pre-training it: the steps, in order."""

import sys
from importlib import import_module

from llmshearing import cli, fired

# Name -> where it is, and one line of help. `main` reads sys.argv; any other function is called by fire.
COMMANDS = {
    "prepare": ("llmshearing.data.prepare:main", "text, one folder per domain, to tokens in MDS shards"),
    "inspect": ("llmshearing.data.inspect:main", "show what a folder of prepared data holds"),
    "merge": ("llmshearing.data.merge_data:merge_data", "merge folders of prepared data into one"),
    "convert": ("llmshearing.commands.convert:save_hf_to_composer", "HF model to a Composer checkpoint"),
    "shapes": ("llmshearing.commands.shapes:shapes", "shapes that meet a budget of size, memory or speed"),
    "plan": ("llmshearing.commands.plan:main", "what a run needs and every problem, before it starts"),
    "train": ("llmshearing.commands.train:main", "prune or train as a YAML file says"),
    "prune": (
        "llmshearing.commands.prune:prune_and_save_model",
        "cut a pruning run's checkpoint to its target",
    ),
    "oneshot": (
        "llmshearing.commands.oneshot:oneshot",
        "a smaller or sparser model without training, by scores",
    ),
    "apply_masks": (
        "llmshearing.commands.apply_masks:apply_masks",
        "zeros in a dense model, by a file of masks",
    ),
    "trim_vocabulary": (
        "llmshearing.commands.trim_vocabulary:trim_vocabulary",
        "a smaller vocabulary, by the tokens that a text uses",
    ),
    "export": ("llmshearing.commands.convert:save_composer_to_hf", "Composer checkpoint to an HF folder"),
    "compare": ("llmshearing.commands.compare:compare", "whether a checkpoint equals an HF model"),
    "check": ("llmshearing.commands.check_pruning:check", "whether a masked model equals its pruned one"),
    "reference_loss": (
        "llmshearing.commands.reference_loss:main",
        "reference losses of dynamic batch loading",
    ),
    "evaluate": ("llmshearing.commands.evaluate:main", "what models can do, side by side"),
    "tune": ("llmshearing.commands.tune:tune", "make a model that follows instructions"),
    "speed": ("llmshearing.commands.speed:main", "how fast models read and write, side by side"),
    "report": ("llmshearing.report.__main__:main", "write an HTML report of one run or several"),
    "config_reference": (
        "llmshearing.commands.config_reference:main",
        "for developers: docs/configuration.md",
    ),
    "family_table": ("llmshearing.commands.family_table:main", "for developers: the table of docs/models.md"),
}


def main() -> None:
    """Run the subcommand that the first word names, or list them all."""
    cli.run(run)


def run() -> None:
    """Import one subcommand, and call it with the other words.

    Raises:
        ValueError: for a subcommand that is missing or unknown, and whatever a subcommand raises.
    """
    name, *words = sys.argv[1:] or [""]
    if name in ("-h", "--help"):
        lines = [f"  {command:<18}{line}" for command, (_, line) in COMMANDS.items()]
        cli.say("\n".join(["usage: llmshearing COMMAND ...\n", __doc__ or "", "", *lines]))
        cli.say(f"\n`llmshearing COMMAND --help` says more about each. {cli.DEBUG_HELP}")
        return
    if name not in COMMANDS:
        found = f"unknown command {name}" if name else "no command is given"
        raise ValueError(f"{found}{cli.nearest(name, COMMANDS) or ';'} `llmshearing --help` lists them.")
    module, _, attribute = COMMANDS[name][0].partition(":")
    command = getattr(import_module(module), attribute)
    sys.argv = [f"llmshearing {name}", *words]
    if attribute == "main":
        command()
    else:
        fired.call(command, f"llmshearing {name}", words)


if __name__ == "__main__":
    main()
