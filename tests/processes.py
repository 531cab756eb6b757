"""Runs of several processes for tests: each rank is forked from a server that imported everything."""

import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

TRAIN = Path(__file__).parent.parent / "train.py"
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["llmshearing.training"])
os.environ["OMP_NUM_THREADS"] = "1"  # read by the server's torch when it starts


class Ranks:
    """The processes of one run of `train.py`; their output is in `log`, one file a rank."""

    def __init__(
        self, arguments: Sequence[str], world_size: int = 1, env: Mapping[str, str] | None = None
    ) -> None:
        self.log = Path(tempfile.mkdtemp(prefix="ranks-"))
        common = {
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
            "NODE_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            **(env or {}),
        }
        self.processes: list[ForkServerProcess] = []
        for rank in range(world_size):
            own = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = _SERVER.Process(target=_run, args=(list(arguments), own, str(self.log / f"{rank}.txt")))
            process.start()
            self.processes.append(process)

    def wait(self, timeout: float = 120) -> list[int]:
        """Exit statuses of all ranks, negative for a signal; ranks that are not done by then are killed."""
        end = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        late = [rank for rank, process in enumerate(self.processes) if process.is_alive()]
        self.kill()
        assert not late, f"ranks {late} did not end within {timeout} s: {self.output()[-3000:]}"
        return [int(process.exitcode or 0) for process in self.processes]

    def kill(self) -> None:
        """SIGKILL every rank that still runs."""
        for process in self.processes:
            process.kill()
            process.join()

    def output(self) -> str:
        """What all ranks wrote."""
        return "\n".join(path.read_text() for path in sorted(self.log.glob("*.txt")))


def run(arguments: Sequence[str], world_size: int = 1, timeout: float = 120) -> str:
    """Run `train.py` to its end; its output. Fails when a rank does."""
    ranks = Ranks(arguments, world_size)
    statuses = ranks.wait(timeout)
    assert not any(statuses), f"exit statuses {statuses}: {ranks.output()[-3000:]}"
    return ranks.output()


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _run(arguments: list[str], env: Mapping[str, str], log: str) -> None:
    os.environ.update(env)
    with Path(log).open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    sys.argv = [str(TRAIN), *arguments]
    sys.path.insert(0, str(TRAIN.parent))
    runpy.run_path(str(TRAIN), run_name="__main__")
