"""Whether a pruning run's masked model equals its pruned, exported one: `llmshearing check`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmshearing.checkpoints.opening import Checkpoint, read_checkpoint
from llmshearing.checkpoints.trained_method import load_method
from llmshearing.commands.convert import export
from llmshearing.commands.equality import (
    Difference,
    conclude,
    differences,
    lengths_up_to,
    load_ours,
    load_theirs,
)
from llmshearing.commands.prune import prune_checkpoint, report
from llmshearing.files import scratch


def masked_against_pruned(checkpoint: Checkpoint, target: Mapping[str, Any]) -> list[Difference]:
    """Prune a checkpoint, export it, reload it with transformers, and compare it with the masked model."""
    pruned = prune_checkpoint(checkpoint, target)
    report(pruned)
    method = load_method(checkpoint, pruned.source, target)
    weights = {name: weight.float() for name, weight in pruned.weights.items()}
    with scratch() as folder:
        export(weights, pruned.arch, pruned.config, {}, folder / "hf")
        theirs = load_theirs(folder / "hf")
    ours = load_ours(checkpoint)
    for name, weight in ours.state_dict().items():
        mask = method.weight_mask(name)
        if mask is not None:
            weight.mul_(mask)
    lengths = lengths_up_to(pruned.source.max_seq_len)
    return differences(ours, theirs, lengths, method.final_gates())


def check(checkpoint_path: str | Path, target: Mapping[str, Any] | None = None) -> None:
    """Check that a pruning run's masked model computes what its pruned, exported model does.

    Example:

        llmshearing check runs/prune/latest-rank0.pt

    Args:
        checkpoint_path: checkpoint of a pruning run.
        target: sizes of the target, such as d_model=2048, where the checkpoint does not state them.

    Raises:
        ValueError: when the two differ, or the checkpoint cannot be pruned.
    """
    conclude(masked_against_pruned(read_checkpoint(checkpoint_path), target or {}))
