"""Knows what every rank is doing, and says so when one dies or hangs."""

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from datetime import timedelta
from typing import Any

from composer.core import Callback, Event, State
from composer.loggers import Logger
from composer.utils import dist
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

HUNG = 70  # EX_SOFTWARE of sysexits.h
_PREFIX = "llmshearing/watchdog"


class Watchdog(Callback):
    """Ends this process when it makes no progress for `timeout` seconds, with a picture of all ranks.

    A thread notes the stage (Composer's event) and its age in the key-value store through which the ranks
    found each other. When something is wrong the notes are compared: a rank whose notes stop coming is dead,
    one whose stage grows old is hung or waits for another. Before it ends, each rank prints what all of them
    were doing, and the stacks of its own threads.

    Args:
        timeout: seconds without an event of the trainer after which a run is given up.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._beat = min(5.0, timeout / 20)
        self._stage = "start"
        self._since = time.monotonic()
        self._first: dict[str, Any] | None = None  # the last note of rank 0, whose store dies with it
        self._store: TCPStore | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        self._stage = f"{event.value} of step {state.timestamp.batch.value}"
        self._since = time.monotonic()
        super().run_event(event, state, logger)

    def init(self, state: State, logger: Logger) -> None:
        if dist.get_world_size() > 1:
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            # A connection of the thread's own: the trainer's may be blocked.
            self._store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=self.timeout))
            self._publish(self._store)
        self._thread.start()

    def close(self, state: State, logger: Logger) -> None:
        self._stop.set()
        self._thread.join()

    def explain(self) -> str:
        """What every rank was doing, one line each; takes a few beats, to see which still live."""
        rank = dist.get_global_rank()
        lines = [f"  rank {rank} (this one): {self._stage}, {time.monotonic() - self._since:.0f} s before"]
        before = self._notes()
        for _ in range(4):
            self._exchange()
            time.sleep(self._beat)
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
        while not self._stop.wait(self._beat):
            self._exchange()
            # A little early: the process group's own timeout, equally long, would end the run without a word.
            if time.monotonic() - self._since > 0.7 * self.timeout:
                self._give_up()

    def _exchange(self) -> None:
        """Note what this rank does; remember what rank 0 does."""
        if self._store is None:
            return
        try:
            self._publish(self._store)
            self._first = json.loads(self._store.get(f"{_PREFIX}/0"))
        except RuntimeError:  # the store is in rank 0 or in a launcher beside it, and went with them
            self._store = None

    def _notes(self) -> dict[int, dict[str, Any]]:
        """The last notes of all ranks; of rank 0 alone when the store is gone."""
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
            "age": time.monotonic() - self._since,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        store.set(f"{_PREFIX}/{dist.get_global_rank()}", json.dumps(note))

    def _give_up(self) -> None:
        waited, picture = time.monotonic() - self._since, self.explain()
        sys.stderr.write(
            f"No progress for {waited:.0f} s (dist_timeout is {self.timeout:.0f}): the run ends.\n{picture}\n"
            f"Stacks of rank {dist.get_global_rank()}:\n"
        )
        sys.stderr.flush()
        faulthandler.dump_traceback(all_threads=True)
        os._exit(HUNG)
