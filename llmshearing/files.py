"""Writing files and folders whole or not at all, and by one process at a time."""

import errno
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from safetensors import SafetensorError

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT)
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
        with _explaining(path, temporary):
            yield temporary
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_new_folder(path: Path, reason: str = "is not empty") -> None:
    """Refuse a folder that holds anything.

    Raises:
        FileExistsError: when `path` exists and is no empty folder; `reason` says why that is refused.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} exists and {reason}; choose another folder, or remove it first.")


@contextmanager
def replacing_folder(path: Path, marker: str | None = None) -> Iterator[Path]:
    """A temporary folder beside `path`, renamed to it on success and removed otherwise.

    Args:
        marker: file that a folder already at `path` must hold to be replaced; None: it must be new or empty.

    Raises:
        FileExistsError: when `path` is something else, which is left alone.
        OSError: when writing fails, whatever the library that wrote raised.
    """
    if marker is None or not (path / marker).is_file():
        check_new_folder(path, f"holds no {marker}" if marker else "is not empty")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    try:
        with _explaining(path, temporary):
            temporary.mkdir()
            yield temporary
            if path.exists():
                path.rename(old)
            temporary.rename(path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
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
def occupied(folder: Path, by: str, setting: str) -> Iterator[None]:
    """Hold a folder against other processes; the system lets go of it however this one ends.

    A folder that is still empty in the end is removed.

    Args:
        by: what writes there, for the message.
        setting: what names the folder, for the message.

    Raises:
        FileExistsError: when another process holds it, or it is no folder.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{setting} is {folder}, which is a file: give a folder, which may be new.")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", blocking=False)  # which children do not inherit
    try:
        lock.acquire()
    except Timeout:
        raise FileExistsError(
            f"Another {by} is writing to {folder} now: wait for it, stop it, or set another {setting}."
        ) from None
    except OSError as error:
        logger.warning("%s cannot be locked (%s): start no second %s there", folder, error, by)
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def _explaining(path: Path, temporary: Path) -> Iterator[None]:
    """Turn what torch, safetensors and the file system raise into an OSError that names `path`."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:  # a failed write, also where the disk is full
        reason = plain_words(str(error).splitlines()[0]).replace(str(temporary), str(path)).rstrip(".")
        disk = shutil.disk_usage(path.parent)
        room = _room(path) if disk.total and disk.free < LITTLE else ""
        raise OSError(f"Writing {path} failed: {reason}{room}.") from error
    except OSError as error:
        if error.errno not in FULL:
            if str(error.filename).startswith(str(temporary)):
                error.filename = str(path)
            raise
        raise OSError(f"Writing {path} failed: {error.strerror}{_room(path)}.") from error


def _room(path: Path) -> str:
    free = shutil.disk_usage(path.parent).free
    return f" ({path.parent} has {free:,} bytes left: make room, or write elsewhere)"


def plain_words(line: str) -> str:
    """A line of an error without the place in torch's sources that it begins with."""
    return re.sub(r"^\[enforce fail at [^]]*\][ .]*", "", line)
