"""How far something is that takes seconds: a bar on a terminal, a line now and then elsewhere."""

import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

_SHORT_SECONDS = 2.0
_LOOK_SECONDS = 0.5


def bar(what: str, items: Iterable[Any] | None = None, total: int | None = None, unit: str = "B") -> tqdm:
    """A bar over `items`, or one of `total` units to be updated by hand; shown when it takes seconds."""
    return tqdm(
        items,
        what,
        total,
        unit=unit,
        unit_scale=unit == "B",
        delay=_SHORT_SECONDS,
        mininterval=0.5 if sys.stderr.isatty() else 15.0,
    )


@contextmanager
def watching(path: Path, total: int, what: str) -> Iterator[None]:
    """Show how many of `total` bytes the file or folder at `path` holds while the block writes them."""
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(path, total, what, over), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _watch(path: Path, total: int, what: str, over: threading.Event) -> None:
    with bar(what, total=total) as progress:
        while not over.wait(_LOOK_SECONDS):
            progress.update(min(written(path), total) - progress.n)


def written(path: Path) -> int:
    """Bytes of a file, or of the files in a folder, that are there by now."""
    try:
        files = path.iterdir() if path.is_dir() else [path]
        return sum(file.stat().st_size for file in files)
    except FileNotFoundError:  # not there yet, or renamed just now
        return 0
