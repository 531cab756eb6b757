"""Writing files and folders whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it on success and removed otherwise.

    Raises:
        OSError: when writing fails, in torch's own words where torch wrote.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except RuntimeError as error:
        raise OSError(f"Writing {path} failed: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path, marker: str) -> Iterator[Path]:
    """A temporary folder beside `path`, renamed to it on success and removed otherwise.

    Args:
        marker: file that a folder already at `path` must hold to be replaced.

    Raises:
        FileExistsError: when `path` is something else, which is left alone.
    """
    if path.exists() and not (path / marker).is_file() and not _is_empty_folder(path):
        raise FileExistsError(f"{path} exists and holds no {marker}; choose another folder or remove it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())
