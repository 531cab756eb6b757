"""Whether the masked model in a pruning run's checkpoint computes what its pruned, exported one does.

    python -m llmshearing.utils.test_pruning CKPT [key=value ...]

The keys are sizes by the names of `target_model`, for checkpoints that do not tell their target.

Example:

    python -m llmshearing.utils.test_pruning runs/prune/latest-rank0.pt
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmshearing import cli
from llmshearing.checkpoints.opening import Checkpoint, read_checkpoint
from llmshearing.checkpoints.trained_masks import load_masks
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


def masked_against_pruned(checkpoint: Checkpoint, target: Mapping[str, Any]) -> list[Difference]:
    """Prune a checkpoint, export it, reload it with transformers, and compare it with the masked model."""
    pruned = prune_checkpoint(checkpoint, target)
    report(pruned)
    zs = load_masks(checkpoint, pruned.source, target)()
    weights = {name: weight.float() for name, weight in pruned.weights.items()}
    with tempfile.TemporaryDirectory() as folder:
        export(weights, pruned.arch, pruned.config, {}, Path(folder) / "hf")
        theirs = load_theirs(Path(folder) / "hf")
    ours = load_ours(checkpoint)
    return differences(ours, theirs, lengths_up_to(pruned.source.max_seq_len), zs)  # type: ignore[arg-type]


def main() -> None:
    parser = cli.parser("llmshearing.utils.test_pruning", __doc__)
    parser.add_argument("checkpoint", help="checkpoint of a pruning run")
    parser.add_argument("target", nargs="*", metavar="key=value", help="sizes of the target")
    args = parser.parse_args()
    conclude(masked_against_pruned(read_checkpoint(args.checkpoint), cli.key_values(args.target)))


if __name__ == "__main__":
    cli.run(main)
