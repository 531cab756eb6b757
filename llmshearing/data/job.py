"""What a preparation does, as every worker gets it, and how the workers write and report their progress."""

import contextlib
import errno
import os
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from llmshearing.data.sources import Task
from llmshearing.data.text_tokenizer import TextTokenizer

MAX_BROKEN_SHARE = 0.05
_PROGRESS_SECONDS = 0.5


@dataclass(frozen=True)
class Job:
    """What is prepared from what; every worker gets all of it."""

    input: str
    output: str
    work: str
    tokenizer: TextTokenizer
    """Loaded: importing transformers takes seconds, which no worker has to spend."""
    seq_length: int
    text_field: str
    eval_tokens: int
    prune_tokens: int
    ft_tokens: int | None
    proportion: dict[str, float] | None
    seed: int
    max_broken: int
    tasks: tuple[Task, ...]
    max_broken_share: float = MAX_BROKEN_SHARE
    """The share of a domain's records above which broken ones stop the preparation; changes no result."""

    @property
    def domains(self) -> list[str]:
        """In the order of the tasks."""
        return list(dict.fromkeys(task.domain for task in self.tasks))

    @property
    def settings(self) -> dict[str, Any]:
        """All that the result depends on beside the sources."""
        others = ("input", "output", "work", "tasks", "tokenizer", "max_broken_share")
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in others}

    def token_folder(self, number: int) -> Path:
        """Where the tokens of a task lie."""
        return Path(self.work) / "tokens" / f"{number:06d}"


def remove_partials(work: Path) -> None:
    """Remove what dead processes of this machine had begun to write below `work`."""
    for path in work.rglob(f"*.{socket.gethostname()}-*.partial"):
        process = int(path.name.split("-")[-1].removesuffix(".partial"))
        if process == os.getpid() or not _is_alive(process):
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True


@contextlib.contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A folder to write to that takes its name once it is complete.

    Until then its name holds the process id: a worker that outlived a killed run may do the same task.
    """
    partial = folder.with_name(f"{folder.name}.{socket.gethostname()}-{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        yield partial
        try:
            partial.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise  # else the other one has written the very same
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class Progress:
    """A small file that reports the progress of a tokenizing task."""

    def __init__(self, work: str, number: int):
        self.tokens = 0
        self._bytes = 0
        self._path = Path(work) / "progress" / str(number)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._written = 0.0

    def report(self, bytes_of_file: int) -> None:
        """Note bytes done of the current file, now and then."""
        if time.monotonic() - self._written > _PROGRESS_SECONDS:
            self._write(self._bytes + bytes_of_file)

    def file_done(self, size: int) -> None:
        """Note that a file is complete."""
        self._bytes += size
        self._write(self._bytes)

    def _write(self, done: int) -> None:
        self._written = time.monotonic()
        self._path.write_text(f"{done} {self.tokens}")

    @staticmethod
    def total(work: str) -> tuple[int, int]:
        """Bytes and tokens of all tasks so far."""
        texts = [path.read_text().split() for path in (Path(work) / "progress").glob("*")]
        counts = [(int(text[0]), int(text[1])) for text in texts if len(text) == 2]
        return sum(done for done, _ in counts), sum(tokens for _, tokens in counts)
