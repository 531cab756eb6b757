"""Runs of several processes for tests: each rank is forked from a server that imported everything."""

import json
import multiprocessing
import os
import runpy
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from omegaconf import OmegaConf

from llmshearing.checkpoints import run_folder
from llmshearing.checkpoints.opening import read_checkpoint
from runs import run_values

TRAIN = Path(__file__).parent.parent / "train.py"
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["preloaded"])
os.environ["OMP_NUM_THREADS"] = "1"  # read by the server's torch when it starts


class Ranks:
    """The processes of one run of `train.py`; their output is in `log`, one file a rank.

    Args:
        fault: called in each of them before it begins (`reliability/faults.py`).
        env: beside the variables that a launcher sets.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        world_size: int = 1,
        fault: Callable[[], None] | None = None,
        env: Mapping[str, str] | None = None,
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
            log = str(self.log / f"{rank}.txt")
            process = _SERVER.Process(target=_run, args=(list(arguments), own, log, fault))
            with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):  # the server's, to import
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

    def signal(self, number: int) -> None:
        """Send a signal to every rank that still runs."""
        for process in self.processes:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, number)

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


def write_config(folder: Path, data: Path, prune: bool = True, **changes: Any) -> str:
    """A configuration whose run writes to `folder`; changes are `key__inner=value`. Its path."""
    values = OmegaConf.create(run_values(data, folder, prune))
    for key, value in {"device_train_microbatch_size": 2, **changes}.items():
        OmegaConf.update(values, key.replace("__", "."), value)
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(values, folder / "run.yaml")
    return str(folder / "run.yaml")


def keep_only(folder: Path, name: str) -> None:
    """Leave a run's folder as it was when it had just written checkpoint `name`."""
    for checkpoint in run_folder.checkpoints(folder):
        if checkpoint.name != name:
            run_folder.remove(checkpoint)


def interrupted(whole: Path, folder: Path, checkpoint: str) -> str:
    """Copy a finished run to `folder`, as if it had ended after writing `checkpoint`; its configuration."""
    shutil.copytree(whole, folder, symlinks=True)
    keep_only(folder, checkpoint)
    path = folder / "run.yaml"
    path.write_text(path.read_text().replace(str(whole), str(folder)))
    return str(path)


def metrics(folder: Path) -> dict[int, dict[str, float]]:
    """All that a run logged but clock times, by step."""
    steps: dict[int, dict[str, float]] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        step = values.pop("step")
        timeless = {k: v for k, v in values.items() if not k.startswith(("throughput/", "time/"))}
        steps.setdefault(step, {}).update(timeless)
    return steps


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a run's last checkpoint, masks and multipliers included."""
    return read_checkpoint(folder / "latest-rank0.pt").weights


def assert_same(one: Path, other: Path) -> None:
    """Losses, masks, multipliers, domain weights of every step and the final weights are equal to the bit."""
    first, second = metrics(one), metrics(other)
    assert list(first) == list(second)
    for step, values in first.items():
        assert second[step] == values, f"step {step}"
    first_weights, second_weights = weights(one), weights(other)
    assert first_weights.keys() == second_weights.keys()
    for name, weight in first_weights.items():
        assert torch.equal(weight, second_weights[name]), name


def assert_close(one: Path, other: Path) -> None:
    """Everything logged at every step agrees to 1e-5."""
    first, second = metrics(one), metrics(other)
    assert list(first) == list(second)
    for step, values in first.items():
        assert second[step] == pytest.approx(values, rel=1e-5, abs=1e-5), f"step {step}"


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _run(arguments: list[str], env: Mapping[str, str], log: str, fault: Callable[[], None] | None) -> None:
    os.environ.update(env)
    with Path(log).open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    sys.argv = [str(TRAIN), *arguments]
    sys.path.insert(0, str(TRAIN.parent))
    if fault is not None:
        fault()
    runpy.run_path(str(TRAIN), run_name="__main__")
