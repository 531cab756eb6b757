"""Reads files of `torch.save` from anywhere without running anything in them.

`torch.load(weights_only=True)` reads tensors and plain containers. Composer's training checkpoints also
hold the few classes of `COMPOSER_CLASSES`, and an original run's `config.pt` those of `_OMEGACONF`: allowed
by name, everything else is rejected unread.

The tensors are mapped from the file. torch does not check where each lies and how long it is, so these are
compared with the archive first.
"""

import collections
import datetime
import pickle
import re
import typing
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf, nodes
from omegaconf.base import ContainerMetadata, Metadata
from torch.torch_version import TorchVersion

from llmshearing.checkpoints.archive import check_archive, is_archive
from llmshearing.config.plain import copied

_RECONSTRUCT = np.empty(0).__reduce__()[0]  # its module's name depends on numpy's version
COMPOSER_CLASSES: list[Any] = [
    datetime.timedelta,
    TorchVersion,
    np.ndarray,
    np.dtype,
    type(np.dtype(np.uint32)),
    (_RECONSTRUCT, "numpy.core.multiarray._reconstruct"),
    (_RECONSTRUCT, "numpy._core.multiarray._reconstruct"),
]
_OMEGACONF: list[Any] = [
    DictConfig,
    ListConfig,
    ContainerMetadata,
    Metadata,
    nodes.AnyNode,
    nodes.StringNode,
    nodes.IntegerNode,
    nodes.FloatNode,
    nodes.BooleanNode,
    collections.defaultdict,
    typing.Any,
    dict,
    list,
    int,
    float,
    str,
    bool,
]


def load_tensors(path: Path) -> Any:
    """The content of a file of torch.save: containers, and tensors mapped from the file.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is truncated, was not written by torch.save, or holds more than data.
    """
    return _load(path, COMPOSER_CLASSES)


def load_omegaconf(path: Path) -> dict[str, Any]:
    """The values of the configuration in an original run's `config.pt`, references as they are written.

    Raises:
        ValueError: when it holds anything but a sound OmegaConf mapping.
    """
    loaded = _load(path, _OMEGACONF)
    if not isinstance(loaded, DictConfig):
        raise ValueError(f"{path} holds a {type(loaded).__name__}; expected an OmegaConf configuration.")
    try:
        return copied({**cast(Any, OmegaConf.to_container(loaded))})
    except Exception as error:  # the attributes of its objects can be anything
        reason = type(error).__name__
        raise ValueError(
            f"{path} holds an OmegaConf configuration that is damaged ({reason}); copy it again."
        ) from None


def plain_file_name(name: Any, source: str | Path) -> str:
    """`name`, which `source` gives for a file beside it.

    Raises:
        ValueError: when it leads out of the folder of `source`.
    """
    if not isinstance(name, str) or name in ("", ".", "..") or re.search(r"[/\\\0]", name):
        raise ValueError(
            f"{source} names {str(name)[:100]!r} as one of its files; expected a plain name in its own "
            "folder. Nothing was read: do not use it if you do not know where it comes from."
        )
    return name


def _load(path: Path, allowed: list[Any]) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; expected a checkpoint: correct the path.")
    try:
        with path.open("rb") as file:
            check_archive(file)
            mapped = is_archive(file)
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise ValueError(_rejection(path, str(error))) from None
    except Exception as error:  # broken bytes can raise anything: KeyError, EOFError, RuntimeError
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be read as a checkpoint: it is truncated, or was "
            f"not written by torch.save ({reason}). Copy it again, or use an earlier one."
        ) from error


def _rejection(path: Path, error: str) -> str:
    found = re.search(r"(?:Unsupported global: GLOBAL|Unsupported class|GLOBAL) ([\w.]+)", error)
    if found is None:
        return f"{path} cannot be read as a checkpoint: it was not written by torch.save; correct the path."
    return (
        f"{path} holds {found[1]}, more than tensors and plain containers; nothing of it was run or read. "
        "Save it again with weights only, or do not use it if you do not know where it comes from."
    )
