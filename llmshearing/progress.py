"""Progress of what takes seconds: a bar on a terminal, a line now and then elsewhere."""

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

_SHORT_SECONDS = 2.0
_LOOK_SECONDS = 0.5
_LINE_SECONDS = 15.0


class _Lines(tqdm):
    """A bar for log files: each state of it on a line of its own."""

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], int]:
        return lambda state: file.write(f"{state}\n" if state else "")


def bar(what: str, items: Iterable[Any] | None = None, total: int | None = None, unit: str = "B") -> tqdm:
    """A bar over `items`, or one of `total` units to be updated by hand; shown when it takes seconds."""
    terminal = sys.stderr.isatty()
    return (tqdm if terminal else _Lines)(
        items,
        what,
        total,
        leave=terminal,
        unit=unit,
        unit_scale=unit == "B",
        delay=_SHORT_SECONDS,
        mininterval=_LOOK_SECONDS if terminal else _LINE_SECONDS,
    )


@contextmanager
def watching(progress: tqdm, look: Callable[[tqdm], object]) -> Iterator[None]:
    """Let `look` update a bar periodically while the block runs."""
    over = threading.Event()

    def watch() -> None:
        with progress:
            while not over.wait(_LOOK_SECONDS):
                look(progress)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def writing(path: Path, total: int, name: str) -> AbstractContextManager[None]:
    """Show how many of `total` bytes the file or folder at `path` holds while the block writes them."""
    return watching(
        bar(f"writing {name}", total=total),
        lambda progress: progress.update(min(written(path), total) - progress.n),
    )


def written(path: Path) -> int:
    """Bytes of a file, or of the files in a folder, that exist so far."""
    try:
        files = path.iterdir() if path.is_dir() else [path]
        return sum(file.stat().st_size for file in files)
    except FileNotFoundError:  # not there yet, or renamed just now
        return 0
