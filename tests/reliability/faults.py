"""What goes wrong, as functions that a rank calls before it begins (`processes.Ranks(fault=...)`).

Each changes the process it runs in, never the package: a callback is put beside the run's own, or a function
of torch or Python is made to fail.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from composer.core import Callback, Event, State
from composer.loggers import Logger

import llmshearing.training as training


class At(Callback):
    """Calls `action` at one event of one step, the first time it comes."""

    def __init__(self, event: str, step: int, action: Callable[[State], None]) -> None:
        self.place: tuple[str, int] | None = (event, step)
        self.action = action

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        if (event.value, state.timestamp.batch.value) == self.place:
            self.place = None
            self.action(state)


def add(callback: Callback) -> None:
    """Put `callback` before the run's own."""
    build = training.build_callbacks
    training.build_callbacks = lambda *arguments: [callback, *build(*arguments)]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(event: str, step: int, rank: int = 0, after: float = 0) -> None:
    """kill -9 on one rank, `after` seconds into what it does there."""

    def linger_and_die(_: State) -> None:
        time.sleep(after)
        die()

    if int(os.environ["RANK"]) == rank:
        add(At(event, step, linger_and_die))


def kill_in_save(moment: str, which: int) -> None:
    """kill -9 on rank 0 in save number `which`: half-way through the file, or before a rename."""
    if os.environ["RANK"] != "0":
        return
    count = {"saves": 0, "renames": 0}
    save, rename = torch.save, Path.rename

    def failing_save(contents: Any, path: Any, *rest: Any, **more: Any) -> None:
        save(contents, path, *rest, **more)
        if not isinstance(path, Path):  # an object that ranks exchange, not a checkpoint
            return
        count["saves"] += 1
        count["renames"] = 0
        if moment == "bytes" and count["saves"] == which:
            os.truncate(path, Path(path).stat().st_size // 2)
            die()

    def failing_rename(self: Path, target: Any) -> Path:
        count["renames"] += 1
        if count["saves"] == which and moment == f"rename {count['renames']}":
            die()
        return rename(self, target)

    torch.save = failing_save
    Path.rename = failing_rename


def hang_at(event: str, step: int, rank: int) -> None:
    """One rank stops for good."""
    if int(os.environ["RANK"]) == rank:
        add(At(event, step, sleep_for_ever))


def sleep_for_ever(*_: Any) -> None:
    while True:
        time.sleep(1)


def nan_at(step: int) -> None:
    """A weight's gradient turns into NaN on rank 0 after the backward pass."""

    def spoil(state: State) -> None:
        gradient = next(p.grad for p in state.model.parameters() if p.grad is not None)
        getattr(gradient, "_local_tensor", gradient).view(-1)[0] = float("nan")

    if os.environ["RANK"] == "0":
        add(At("after_backward", step, spoil))


def linger_at(event: str, step: int, ranks: tuple[int, ...], seconds: float) -> None:
    """Some ranks take their time, in which they run: it goes on after a SIGSTOP."""

    def linger(state: State) -> None:
        for _ in range(round(seconds * 10)):
            time.sleep(0.1)

    if int(os.environ["RANK"]) in ranks:
        add(At(event, step, linger))


def slow_disk(seconds: float) -> None:
    """Writing a checkpoint takes so long, a little at a time."""
    save = torch.save

    def slowly(contents: Any, path: Any, *rest: Any, **more: Any) -> None:
        save(contents, path, *rest, **more)
        if not isinstance(path, Path):
            return
        written = path.read_bytes()
        part = len(written) // 100 + 1
        with path.open("wb") as file:
            for begin in range(0, len(written), part):
                time.sleep(seconds / 100)
                file.write(written[begin : begin + part])
                file.flush()

    torch.save = slowly
