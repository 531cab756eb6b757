"""What commands that make a model of a model share: the one they read, and the place they write to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from llmshearing import cli
from llmshearing.checkpoints.opening import Checkpoint, read_checkpoint
from llmshearing.checkpoints.weights import check_finite
from llmshearing.checkpoints.writing import check_output, write_checkpoint
from llmshearing.commands.convert import export, record_of, with_dtype
from llmshearing.files import check_new_folder
from llmshearing.shapes.architecture import Architecture


def check_place(out: str | Path, source: str | Path) -> None:
    """Check that `write_model` overwrites nothing that must stay.

    Raises:
        FileExistsError: when it would.
    """
    if _is_checkpoint(out):
        check_output(out, source)
    else:
        check_new_folder(Path(out))


def read_model(path: str | Path) -> Checkpoint:
    """A checkpoint without masks, with finite weights.

    Raises:
        FileNotFoundError, ValueError: as `read_checkpoint`, and where there are masks, NaN or infinity.
    """
    checkpoint = read_checkpoint(path)
    if checkpoint.section:
        raise ValueError(
            f"{path} is the checkpoint of a pruning run, whose masks are not applied yet; `llmshearing prune "
            f"{path}` applies them."
        )
    check_finite(checkpoint.weights, path)
    return checkpoint


def write_model(
    out: str | Path,
    weights: Mapping[str, Tensor],
    arch: Architecture,
    config: Mapping[str, Any],
    source: Checkpoint,
) -> None:
    """Write an HF folder or, where `out` ends in .pt, a Composer checkpoint, completely or not at all.

    Args:
        config: the HF config of `arch`.
        source: with the files that travel.

    Raises:
        OSError: when it cannot be written.
    """
    if _is_checkpoint(out):
        write_checkpoint(out, weights, record_of(source, with_dtype(config, weights)))
    else:
        export(weights, arch, config, source.hf_files, out)
    cli.say(f"saved   {out}")


def _is_checkpoint(out: str | Path) -> bool:
    return Path(out).suffix == ".pt"
