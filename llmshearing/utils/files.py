"""Writing files and folders whole or not at all."""

import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

if TYPE_CHECKING:
    from torch import Tensor

_FULL = (errno.ENOSPC, errno.EDQUOT)
LITTLE = 2**30  # bytes left on a file system that count as full


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it on success and removed otherwise.

    Raises:
        OSError: when writing fails, whatever the library that wrote raised.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _explaining(path):
            yield temporary
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path, marker: str) -> Iterator[Path]:
    """A temporary folder beside `path`, renamed to it on success and removed otherwise.

    Args:
        marker: file that a folder already at `path` must hold to be replaced.

    Raises:
        FileExistsError: when `path` is something else, which is left alone.
        OSError: when writing fails, whatever the library that wrote raised.
    """
    if path.exists() and not (path / marker).is_file() and not _is_empty_folder(path):
        raise FileExistsError(f"{path} exists and holds no {marker}; choose another folder or remove it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    temporary.mkdir()
    try:
        with _explaining(path):
            yield temporary
            if path.exists():
                path.rename(old)
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def save_tensors(tensors: Mapping[str, "Tensor"], path: Path) -> None:
    """Write a safetensors file that others may read as they may read any new file.

    Left alone, the library makes files for their owner only.
    """
    from safetensors.torch import save_file  # not above: it brings torch, which the report can do without

    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata={"format": "pt"})
    path.chmod(mode)


@contextmanager
def _explaining(path: Path) -> Iterator[None]:
    """Turn what torch, safetensors and a full file system raise into an OSError that names `path`."""
    try:
        yield
    except (RuntimeError, SafetensorError, OSError) as error:
        full = isinstance(error, OSError)
        if full and error.errno not in _FULL:
            raise
        reason = error.strerror if full else plain_words(str(error).splitlines()[0])
        free = shutil.disk_usage(path.parent).free
        if full or free < LITTLE:
            reason = f"{reason} ({path.parent} has {free:,} bytes left: make room, or write elsewhere)"
        raise OSError(f"Writing {path} failed: {reason}.") from error


def plain_words(line: str) -> str:
    """A line of an error without the place in torch's sources that it begins with."""
    return re.sub(r"^\[enforce fail at [^]]*\][ .]*", "", line)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())
