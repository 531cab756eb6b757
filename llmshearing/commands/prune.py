"""From the checkpoint of a pruning run to the smaller model it found: `llmshearing prune`."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from llmshearing import cli
from llmshearing.checkpoints.describing import describe
from llmshearing.checkpoints.opening import Checkpoint, in_pieces, read_checkpoint
from llmshearing.checkpoints.trained_method import load_method
from llmshearing.checkpoints.weights import check_finite, section_of, shape_in_words, total_bytes
from llmshearing.checkpoints.writing import check_output, write_checkpoint
from llmshearing.commands.convert import export, record_of, with_dtype
from llmshearing.files import check_new_folder, replacing
from llmshearing.progress import bar
from llmshearing.pruning.cut import cut
from llmshearing.pruning.mask_file import write_masks
from llmshearing.pruning.method import Convergence
from llmshearing.pruning.patterns import pack
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.hf_config import architecture_to_hf
from llmshearing.shapes.key_map import to_hf
from llmshearing.shapes.units import Gates

_SIZES = ("d_model", "n_heads", "n_kv_heads", "n_layers", "intermediate_size")


@dataclass(frozen=True)
class Pruned:
    """What a pruning run found: weights and HF config, what they came from, how converged its masks were.

    Attributes:
        masks: bits of the masks on single weights, by HF name; empty where whole units were removed.
    """

    weights: dict[str, Tensor]
    arch: Architecture
    config: dict[str, Any]
    source: Architecture
    convergence: dict[str, Convergence]
    masks: dict[str, Tensor]
    remedy: str = ""
    """Keys of the configuration to look at where they have not."""


def prune_and_save_model(
    checkpoint_path: str | Path,
    out: str | Path | None = None,
    *,
    hf: str | Path | None = None,
    dense_weights: bool = False,
    target: Mapping[str, Any] | None = None,
) -> Path:
    """Cut the checkpoint of a pruning run to the smaller model it found, and save that.

    Masks on single weights are also written to a file of their own beside it, `<name>.masks.npz`, which
    `llmshearing apply_masks` applies to the dense model.

    A checkpoint of the released code states its target in the config.pt beside it.

    Example:

        llmshearing prune runs/prune/latest-rank0.pt

    Args:
        checkpoint_path: file, or folder of a sharded checkpoint.
        out: file to write (`pruned-<name>` beside the checkpoint).
        hf: HF folder to write as well.
        dense_weights: leave the weights as they are under masks on single weights, which are only written.
        target: sizes of the target, such as d_model=2048, where the checkpoint does not state them.

    Returns:
        The file that was written.

    Raises:
        ValueError: when the checkpoint has no masks, or they do not make the target.
        OSError: when something is missing or cannot be written.
    """
    path = Path(out) if out else default_output(Path(checkpoint_path))
    check_output(path, checkpoint_path)
    if hf:
        check_new_folder(Path(hf))
    checkpoint = read_checkpoint(checkpoint_path)
    pruned = prune_checkpoint(checkpoint, target or {}, dense_weights)
    report(pruned)
    record = record_of(checkpoint, with_dtype(pruned.config, pruned.weights))
    if pruned.masks:
        check_output(masks_beside(path), checkpoint_path)
    with masks_written(path, pruned.masks):
        write_checkpoint(path, pruned.weights, record)
    cli.say(f"saved   {path}")
    if hf:
        export(pruned.weights, pruned.arch, pruned.config, checkpoint.hf_files, hf)
        cli.say(f"saved   {hf}")
    return path


def prune_checkpoint(
    checkpoint: Checkpoint, target: Mapping[str, Any], dense_weights: bool = False
) -> Pruned:
    """The smaller model in a checkpoint: deterministic masks of exactly the target's sizes, folded in.

    Args:
        dense_weights: do not fold in masks on single weights.

    Raises:
        ValueError: when there are no masks, they do not make the target, or weights are NaN or infinite.
    """
    arch, config = describe(checkpoint, {})
    method = load_method(checkpoint, arch, target)
    masks: dict[str, Tensor] = {}

    def mask(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights under the masks on their single numbers, whose bits are kept."""
        check_finite(weights, checkpoint.path)
        masked = {}
        for name, weight in weights.items():
            stays = method.weight_mask(name)
            if stays is not None:
                masks[to_hf(name, arch.family)] = pack(stays)
                weight = weight if dense_weights else weight.masked_fill(~stays, 0)
            masked[name] = weight
        return masked

    weights, smaller = cut_checkpoint(checkpoint, method.final_gates(), arch, method.target, mask)
    if dense_weights and not masks:
        raise ValueError(
            f"{checkpoint.path} has masks on whole units, which are removed, none on single "
            "weights: leave out --dense-weights."
        )
    config = architecture_to_hf(smaller, config)
    return Pruned(weights, smaller, config, arch, method.convergence(), masks, method.remedy)


def cut_checkpoint(
    checkpoint: Checkpoint,
    gates: Gates,
    arch: Architecture,
    target: Architecture | None,
    mask: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
) -> tuple[dict[str, Tensor], Architecture]:
    """`cut` of a checkpoint, of which memory holds a piece at a time; the tensors of a method are dropped.

    Args:
        mask: applied to the weights of each piece first.

    Raises:
        ValueError: when the gates do not make the target; None accepts any shape.
    """
    weights, smaller = {}, arch
    with bar("cutting", total=total_bytes(checkpoint.weights)) as progress:
        for piece in in_pieces(checkpoint):
            of_model = {name: weight for name, weight in piece.items() if section_of(name) is None}
            part, smaller = cut(mask(of_model), gates, arch)
            weights |= part
            progress.update(total_bytes(piece))
    _check_target(smaller, target)
    return weights, smaller


@contextmanager
def masks_written(path: Path, masks: Mapping[str, Tensor]) -> Iterator[None]:
    """Write masks, if there are any, beside the model at `path` that the block writes: both or neither."""
    if not masks:
        yield
        return
    with replacing(masks_beside(path)) as draft:
        write_masks(draft, masks)
        yield
    cli.say(f"saved   {masks_beside(path)}")


def masks_beside(path: Path) -> Path:
    """The file of masks beside a checkpoint or HF folder: `<name>.masks.npz`."""
    return path.with_name(f"{path.name.removesuffix('.pt')}.masks.npz")


def default_output(path: Path) -> Path:
    """`pruned-<name>` beside `path`, with the suffix .pt for the folder of a sharded checkpoint."""
    name = f"pruned-{path.name}"
    return path.with_name(name if path.is_file() else f"{name}.pt")


def report(pruned: Pruned) -> None:
    """Print the shape before and after, and how far each kind of units is from its target."""
    for word, arch in (("before", pruned.source), ("after", pruned.arch)):
        cli.say(f"{word:<7} {shape_in_words(arch)}")
    if pruned.masks:
        cli.say(f"masks   on single numbers of {len(pruned.masks)} weights")
    if pruned.convergence:
        cli.say(f"{'removed':<14}{'target':>8}{'expected':>10}{'worst row off by':>18}")
    for name, row in pruned.convergence.items():
        note = "" if row.reached else "   not converged"
        cli.say(f"{name:<14}{row.target:>8.4f}{row.expected:>10.4f}{row.worst:>18.4f}{note}")
    if not all(row.reached for row in pruned.convergence.values()):
        cli.say(
            "What has not converged was cut to the target all the same: the shape is right, but the model "
            "loses more than the masked one did. More steps close the gap"
            + (f"; look at {pruned.remedy}." if pruned.remedy else ".")
        )


def _check_target(found: Architecture, target: Architecture | None) -> None:
    if target is None:
        return
    off = [name for name in _SIZES if getattr(found, name) != getattr(target, name)]
    if off:
        raise ValueError(
            "The masks make another shape than the target: "
            + ", ".join(f"{name} {getattr(found, name)} (expected {getattr(target, name)})" for name in off)
            + "."
        )
