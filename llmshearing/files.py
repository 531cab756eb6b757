"""Write files and folders completely or not at all, and from one process at a time."""

import errno
import fcntl
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT)
LITTLE = 2**30  # bytes left on a file system that count as full
LOCK = ".lock"
_OLD = ".old"  # in a draft's folder: what is being replaced
_LOCKED_ELSEWHERE = (errno.EAGAIN, errno.EACCES)
_HELD: set[int] = set()  # descriptors of locks


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it on success and removed otherwise.

    Where `path` is a link, what it leads to is written. What a killed process left behind while it wrote
    `path` is removed first.

    Raises:
        OSError: when writing fails, whatever the library that wrote raised.
    """
    path = _end_of_links(path)
    with _draft(path) as temporary:
        yield temporary
        temporary.replace(path)


def _end_of_links(path: Path) -> Path:
    return path.resolve() if path.is_symlink() else path


def check_new_folder(path: Path, reason: str = "is not empty") -> None:
    """Check that a folder is new or empty.

    Raises:
        FileExistsError: when `path` exists and is not an empty folder; `reason` says what is wrong with it.
    """
    if path.is_symlink() and not path.exists():
        raise FileExistsError(f"{path} is a link to nothing; choose another folder, or remove it first.")
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} exists and {reason}; choose another folder, or remove it first.")
    check_writable(path.parent)


def check_writable(folder: Path) -> None:
    """Check that this process may write to a folder, which may be new: before the work, not after it.

    It is tried, with a file that has no name or loses it at once: rights alone do not tell, such as in /proc.

    Raises:
        OSError: when it cannot.
    """
    place = next(each for each in (folder, *folder.parents) if each.exists())
    if not place.is_dir():
        raise NotADirectoryError(f"{place} is a file; expected a folder to write to: choose another place.")
    try:
        tempfile.TemporaryFile(dir=place).close()
    except PermissionError:
        raise PermissionError(
            f"{place} is a folder where this process may not write: make it writable, or choose another."
        ) from None
    except OSError as error:
        raise OSError(
            f"{place} is a folder where this process cannot write ({error.strerror}): choose another."
        ) from error


@contextmanager
def replacing_folder(path: Path, marker: str | None = None) -> Iterator[Path]:
    """A temporary folder beside `path`, renamed to it on success and removed otherwise.

    Where `path` is a link, the folder that it leads to is written.

    Args:
        marker: file that a folder already at `path` must hold to be replaced; None: it must be new or empty.

    Raises:
        FileExistsError: when `path` is something else, which is left alone.
        OSError: when writing fails, whatever the library that wrote raised.
    """
    if marker is None or not (path / marker).is_file():
        check_new_folder(path, f"holds no {marker}" if marker else "is not empty")
    path = _end_of_links(path)
    with _draft(path) as temporary:
        temporary.mkdir()
        yield temporary
        old = temporary.with_name(_OLD)
        if path.exists():
            path.rename(old)
        try:
            temporary.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise


def save_tensors(
    tensors: Mapping[str, "Tensor"], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file that others may read as they may read any new file.

    By default, the library makes files that only their owner can read.

    Args:
        metadata: texts to store with the tensors.
    """
    from safetensors.torch import save_file  # imports torch, which the report does not need

    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata={"format": "pt", **(metadata or {})})
    path.chmod(mode)


@contextmanager
def occupied(folder: Path, by: str, setting: str) -> Iterator[None]:
    """Lock a folder against other processes; the OS releases the lock when this one ends.

    The lock file is removed at the end, and the folder with it if nothing else is there.

    Args:
        by: what writes there, for the message.
        setting: what names the folder, for the message.

    Raises:
        FileExistsError: when another process holds it, or it is not a folder.
        PermissionError: when this process may not write there.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{setting} is {folder}, which is a file: give a folder, which may be new.")
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{setting} is {folder}, where this process may not write: make it writable, or give another "
            "folder."
        )
    path = folder / LOCK
    try:
        with lock(path) as unsupported:
            if unsupported:
                logger.warning("%s cannot be locked (%s): start no second %s there", path, unsupported, by)
            try:
                yield
            finally:
                with suppress(OSError):
                    path.unlink()  # while it is held: `_acquire` notices that a file lost its name
                    folder.rmdir()
    except Held:
        raise FileExistsError(
            f"Another {by} is writing to {folder} now (it holds {path}): wait for it, stop it, or set "
            f"another {setting}."
        ) from None


class Held(Exception):
    """Another process holds a lock."""


@contextmanager
def lock(path: Path, wait: bool = False) -> Iterator[str | None]:
    """Lock the file `path` against other processes; the OS releases the lock when this one ends.

    The file stays. Only its holder may remove it: whoever gets the lock checks that the name still leads to
    the locked file. On a file system without locks nothing is held: a file whose mere presence is the lock
    would outlive its owner.

    Args:
        wait: until another process releases it.

    Yields:
        None, or why there are no locks on this file system.

    Raises:
        Held: when another process holds it, unless `wait`.
    """
    descriptor, unsupported = _acquire(path, wait)
    _HELD.add(descriptor)
    try:
        yield unsupported
    finally:
        if descriptor in _HELD:  # not in a child, which closed it when it was forked
            _HELD.discard(descriptor)
            os.close(descriptor)


def _close_in_child() -> None:
    """A forked child shares its parent's descriptors, and would hold the locks after it."""
    for descriptor in _HELD:
        os.close(descriptor)
    _HELD.clear()


os.register_at_fork(after_in_child=_close_in_child)


def _acquire(path: Path, wait: bool) -> tuple[int, str | None]:
    """A descriptor of `path` that is locked; or one that is only open, and why there are no locks."""
    while True:
        descriptor = _open(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor, None
        except FileNotFoundError:
            pass  # its name was removed between opening and locking it: lock the file of that name now
        except OSError as error:
            if error.errno in _LOCKED_ELSEWHERE:
                os.close(descriptor)
                raise Held(path) from None
            return descriptor, error.strerror
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        if not path.exists():
            raise
        return os.open(path, os.O_RDONLY)  # another user's


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder, removed in the end; those that killed processes left behind are removed first."""
    path = Path(tempfile.gettempdir()) / "llmshearing"
    _clear_drafts(path)
    with _held_folder(path) as folder:
        yield folder


@contextmanager
def _draft(path: Path) -> Iterator[Path]:
    """A path of the same name in a locked folder beside `path`; the folder is removed in the end.

    Raises:
        OSError: when writing fails, whatever the library that wrote raised; it names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_drafts(path)
    with _explaining(path), _held_folder(path) as folder:
        yield folder / path.name


@contextmanager
def _held_folder(path: Path) -> Iterator[Path]:
    """A locked folder beside `path`, removed in the end."""
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        with lock(folder / LOCK):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _draft_name(path: Path) -> str:
    """The pattern of the folders that `_held_folder` makes for `path`."""
    return rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}\.tmp"


def _clear_drafts(path: Path) -> None:
    """Remove the drafts of `path` that no process holds; what one was replacing goes back to its place."""
    name = re.compile(_draft_name(path))
    for folder in [entry for entry in path.parent.iterdir() if name.fullmatch(entry.name)]:
        if not os.access(folder, os.W_OK | os.X_OK) or not (folder / LOCK).is_file():
            continue  # another user's, or nothing of ours
        try:
            with lock(folder / LOCK) as unsupported:
                if not unsupported and (folder / _OLD).exists() and not path.exists():
                    (folder / _OLD).rename(path)
        except (Held, FileNotFoundError):
            continue
        if unsupported:
            logger.warning("%s may be left from an interrupted write: remove it when nothing writes", folder)
        else:
            shutil.rmtree(folder, ignore_errors=True)
            logger.warning("removed %s, which an interrupted process left behind", folder)


@contextmanager
def _explaining(path: Path) -> Iterator[None]:
    """Turn what torch, safetensors and the file system raise into an OSError that names `path`."""
    draft = re.compile(rf"{re.escape(str(path.parent))}/{_draft_name(path)}(/{re.escape(path.name)})?")
    try:
        yield
    except (RuntimeError, SafetensorError) as error:  # a failed write, also where the disk is full
        reason = draft.sub(str(path), plain_words(first_line(error))).rstrip(".")
        disk = shutil.disk_usage(path.parent)
        room = _room(path) if disk.total and disk.free < LITTLE else ""
        raise OSError(f"Writing {path} failed: {reason}{room}.") from error
    except OSError as error:
        if error.errno not in FULL:
            if draft.match(str(error.filename)):
                error.filename = str(path)
            raise
        raise OSError(f"Writing {path} failed: {error.strerror}{_room(path)}.") from error


def _room(path: Path) -> str:
    free = shutil.disk_usage(path.parent).free
    return f" ({path.parent} has {free:,} bytes left: make room, or write elsewhere)"


def first_line(error: BaseException) -> str:
    """The first line of an error that says anything, else its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def plain_words(line: str) -> str:
    """A line of an error without the place in torch's sources that it begins with."""
    return re.sub(r"^\[enforce fail at [^]]*\][ .]*", "", line)
