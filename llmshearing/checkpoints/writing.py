"""Writes checkpoints to a file, and loads them into a model."""

import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.serialization import config as serialization

from llmshearing.checkpoints import run_folder
from llmshearing.checkpoints.opening import RECORD_KEY, Checkpoint
from llmshearing.checkpoints.weights import check_weights, section_of, total_bytes
from llmshearing.files import check_writable, replacing
from llmshearing.progress import writing

logger = logging.getLogger(__name__)


def check_output(out: str | Path, source: str | Path) -> None:
    """Check that writing to `out` overwrites nothing but a file of the same kind that a command wrote.

    Args:
        out: a checkpoint or, when it ends in .npz, a file of masks.

    Raises:
        FileExistsError: when `out` is a part of the source, a checkpoint of a run, or anything else.
        OSError: when this process may not write there.
    """
    path, origin = Path(out), Path(source)
    check_writable(path.parent)
    if not (path.exists() or path.is_symlink()):
        return
    if origin.exists() and path.resolve().is_relative_to(origin.resolve()):
        what = f"a part of {origin}, which is read"
    elif path.is_symlink() or run_folder.read_manifest(path):
        what = "a checkpoint of a run" if path.exists() else "a link to nothing"
    elif not _is_of_the_kind(path):
        what = "not a file of masks" if path.suffix == ".npz" else "not a checkpoint"
    else:
        logger.warning("%s exists and is overwritten", path)
        return
    raise FileExistsError(f"{path} exists and is {what}: choose another name, or remove it first.")


def _is_of_the_kind(path: Path) -> bool:
    """Whether `path` is what its name promises, by the names of its members."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile):
        return False
    if path.suffix == ".npz":
        return bool(members) and all(name.endswith(".mask.npy") for name in members)
    return any(name.endswith("/data.pkl") for name in members)


def write_checkpoint(path: str | Path, weights: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write weights and their record as a checkpoint that `read_checkpoint` and Composer read.

    A failed write leaves nothing behind. There are no checksums: no reader of mapped files uses them, and
    they would take a quarter of the time.

    Raises:
        OSError: when it cannot be written.
    """
    with (
        replacing(Path(path)) as temporary,
        writing(temporary, total_bytes(weights), Path(path).name),
        serialization.patch("save.compute_crc32", False),  # type: ignore[attr-defined]
    ):
        torch.save({"state": {"model": dict(weights)}, RECORD_KEY: dict(record)}, temporary)


def check_masks(checkpoint: Checkpoint, section: str | None) -> None:
    """Check that a run starts from no checkpoint whose masks are not applied but one of its own method.

    Args:
        section: that of the run's pruning method; None: it prunes nothing.

    Raises:
        ValueError: when it would, with the command that applies the masks.
    """
    if checkpoint.section not in (None, section):
        raise ValueError(
            f"{checkpoint.path} is the checkpoint of a pruning run, whose masks are not applied yet, and "
            f"this run has no model.{checkpoint.section}. Run `llmshearing prune {checkpoint.path}` and "
            "start from the file that it writes."
        )


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy a checkpoint's weights into a `ComposerMosaicLlama`, strictly.

    Parameters of the pruning method that the checkpoint lacks keep their initial values.

    Raises:
        ValueError: when weights and model differ, or only the checkpoint has a pruning method.
    """
    decoder = model.model
    method = decoder.method  # type: ignore[union-attr]
    check_masks(checkpoint, None if method is None else method.section)  # type: ignore[union-attr]
    check_weights(checkpoint.weights, decoder.arch, checkpoint.path)  # type: ignore[union-attr,arg-type]
    # Imported here: it takes seconds, and conversion does not need it.
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    options = StateDictOptions(full_state_dict=True, strict=checkpoint.section is not None)
    try:  # unlike model.load_state_dict, this also fills a sharded model, each process its part
        missing, _ = set_model_state_dict(model, dict(checkpoint.weights), options=options)
    except RuntimeError as error:
        raise ValueError(
            f"The masks of {checkpoint.path} do not fit model.{checkpoint.section}: {error}"
        ) from error
    assert all(section_of(name) for name in missing)
