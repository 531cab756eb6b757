"""Watches the progress of all ranks, and ends the run with a report when one dies or hangs."""

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from composer.core import Callback, Event, State
from composer.loggers import Logger
from composer.utils import dist
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

HUNG = 70  # EX_SOFTWARE of sysexits.h
_PREFIX = "llmshearing/watchdog"
_LIMIT = (
    0.7  # of the timeout: the process group's own, equally long, would end the run without an explanation
)


class Watchdog(Callback):
    """Ends this process when no rank makes progress for `timeout` seconds, and reports on all ranks.

    Progress is an event of the trainer, a byte of a checkpoint that is being written, or a call of `beat`. A
    thread notes the stage (Composer's event) and the age of the last progress in the key-value store through
    which the ranks found each other. When neither this rank nor any other has made recent progress, the notes
    are compared: a rank that stops writing notes is dead, one that stays in a stage hangs or waits for
    another. Before it ends, each rank prints what all ranks were doing, and the stacks of its own threads.

    Only time in which the thread itself ran counts: the count starts over after a process was stopped or a
    machine suspended. A single process waits for no other, and is not watched.

    Args:
        timeout: seconds without progress after which the run ends.
        saving: the folder in which checkpoints are written.
    """

    def __init__(self, timeout: float, saving: Path | None = None) -> None:
        self.timeout = timeout
        self.saving = saving
        self._interval = min(5.0, timeout / 20)
        self._stage = "start"
        self._beats = 0
        self._seen = (0, 0)
        self._age = 0.0
        self._first: dict[str, Any] | None = None  # the last note of rank 0, whose store dies with it
        self._others: dict[int, dict[str, Any]] = {}
        self._store: TCPStore | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        self._stage = f"{event.value} of step {state.timestamp.batch.value}"
        self.beat()
        super().run_event(event, state, logger)

    def beat(self) -> None:
        """Note that this process makes progress."""
        self._beats += 1

    def init(self, state: State, logger: Logger) -> None:
        if dist.get_world_size() == 1:
            return
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # A connection of the thread's own: the trainer's may be blocked.
        self._store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=self.timeout))
        self._publish(self._store)
        self._thread.start()

    def close(self, state: State, logger: Logger) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def explain(self) -> str:
        """What every rank was doing, one line each; takes a few intervals, to see which ranks are alive."""
        rank = dist.get_global_rank()
        lines = [f"  rank {rank} (this one): {self._stage}, {self._age:.0f} s before"]
        before = self._notes()
        for _ in range(4):
            self._exchange()
            time.sleep(self._interval)
        after = self._notes()
        for other, note in sorted({**before, **after}.items()):
            if other == rank:
                continue
            lives = other in after and after[other]["beat"] != before.get(other, {}).get("beat")
            where = f"  rank {other} on {note['host']}, process {note['pid']}: "
            state = "" if lives else "DEAD or out of reach; when last heard of: "
            lines.append(f"{where}{state}{note['stage']}, {note['age']:.0f} s before")
        return "\n".join(lines)

    def _watch(self) -> None:
        while True:
            begun = time.monotonic()
            if self._stop.wait(self._interval):
                return
            waited = time.monotonic() - begun
            stopped = waited > 2 * self._interval + 1
            self._age = 0.0 if self._progressed() or stopped else self._age + waited
            begun = time.monotonic()
            self._exchange()
            self._age += time.monotonic() - begun
            if self._age > _LIMIT * self.timeout and not self._others_progress():
                self._give_up()

    def _progressed(self) -> bool:
        """Whether this rank made progress since the last call."""
        before, self._seen = self._seen, (self._beats, _bytes_below(self.saving))
        return self._seen != before

    def _others_progress(self) -> bool:
        """Whether a live rank made progress lately, for which this one waits."""
        before, self._others = self._others, self._notes()
        rank, lately = dist.get_global_rank(), _LIMIT * self.timeout / 2
        return any(
            note["age"] < lately and note["beat"] != before.get(other, {}).get("beat")
            for other, note in self._others.items()
            if other != rank
        )

    def _exchange(self) -> None:
        """Publish the note of this rank; remember that of rank 0."""
        if self._store is None:
            return
        try:
            self._publish(self._store)
            self._first = json.loads(self._store.get(f"{_PREFIX}/0"))
        except RuntimeError:  # the store lived in rank 0 or its launcher, which is gone
            self._store = None

    def _notes(self) -> dict[int, dict[str, Any]]:
        """The last notes of all ranks; only that of rank 0 when the store is gone."""
        try:
            if self._store is not None:
                keys = {rank: f"{_PREFIX}/{rank}" for rank in range(dist.get_world_size())}
                store = self._store
                return {rank: json.loads(store.get(key)) for rank, key in keys.items()}
        except RuntimeError:
            self._store = None
        return {} if self._first is None else {0: self._first}

    def _publish(self, store: TCPStore) -> None:
        note = {
            "beat": time.time(),
            "stage": self._stage,
            "age": self._age,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        store.set(f"{_PREFIX}/{dist.get_global_rank()}", json.dumps(note))

    def _give_up(self) -> None:
        """End this process, unless it makes progress while the notes are collected."""
        waited, picture = self._age, self.explain()
        if self._progressed() or self._stop.is_set():
            self._age = 0.0
            return
        sys.stderr.write(
            f"No progress for {waited:.0f} s (dist_timeout is {self.timeout:.0f}): the run ends.\n{picture}\n"
            f"Stacks of rank {dist.get_global_rank()}:\n"
        )
        sys.stderr.flush()
        faulthandler.dump_traceback(all_threads=True)
        os._exit(HUNG)


def _bytes_below(folder: Path | None) -> int:
    """Bytes of the files below a folder, which may come and go."""
    total = 0
    for path in folder.rglob("*") if folder is not None else []:
        with suppress(OSError):
            total += path.stat().st_size
    return total
