"""Run the stages of preparation through datatrove's executors: on this machine, with Ray, with Slurm."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import loguru
from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from tqdm import tqdm

from llmshearing.data import stages
from llmshearing.data.job import Job, Progress, remove_partials
from llmshearing.files import FULL
from llmshearing.progress import bar, watching

EXECUTORS = ("local", "slurm", "ray")
# Packing is quick, and importing mosaicml-streaming takes seconds in each process.
_BYTES_PER_PACKER = 1 << 30


class Step:
    """A stage as datatrove calls it."""

    def __init__(self, function: Callable[[Job, int], None], job: Job):
        self.function = function
        self.job = job

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        self.function(self.job, rank)

    def __repr__(self) -> str:
        return self.function.__name__


class LocalExecutor(LocalPipelineExecutor):
    """datatrove's local executor, quiet on the terminal, which stops when one of its processes dies.

    datatrove's own `run` waits for ever for the task of a process that was killed.
    """

    def _run_for_rank(self, *args: Any, **kwargs: Any) -> Any:
        loguru.logger.disable("datatrove")  # errors come as exceptions anyway
        return super()._run_for_rank(*args, **kwargs)

    def run(self) -> None:
        """Run the tasks that are not complete; Ctrl-C and the first failure stop the others.

        Raises:
            OSError: when a process was killed from outside.
        """
        ranks = self.get_incomplete_ranks()
        if self.workers == 1:
            for rank in ranks:
                self._run_for_rank(rank)
            return
        pool = ProcessPoolExecutor(self.workers, _forkserver_without_interrupts(), _follow_the_command)
        try:
            for task in as_completed([pool.submit(self._run_for_rank, rank) for rank in ranks]):
                task.result()
        except BaseException as error:
            for child in multiprocessing.active_children():
                child.kill()  # they may ignore SIGTERM
            if isinstance(error, BrokenProcessPool):
                raise OSError(
                    "a worker was ended from outside, as the system does when memory runs out: run the same "
                    "command again, with fewer --workers if it happens again; what is complete is kept"
                ) from None
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _follow_the_command() -> None:
    """In a worker: leave Ctrl-C to the command, and exit once the command is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    command = multiprocessing.parent_process()
    assert command is not None

    def watch() -> None:
        command.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _forkserver_without_interrupts() -> ForkServerContext:
    """The context that starts workers, which ignore Ctrl-C: the main process stops them."""
    mine = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, mine)
    return multiprocessing.get_context("forkserver")


def run_stages(job: Job, kind: str, workers: int, slurm_partition: str | None, slurm_time: str) -> None:
    """Run all stages; with Slurm, submit them as jobs that wait for one another.

    Raises:
        OSError: naming the log of a stage that failed on another machine; here, what the stage raises.
    """
    Path(job.work).mkdir(parents=True, exist_ok=True)
    packers = 1 + sum(task.size for task in job.tasks) // _BYTES_PER_PACKER
    plan = [
        (stages.tokenize, len(job.tasks), workers),
        (stages.plan, 1, 1),
        (stages.pack, len(stages.pack_tasks(job)), min(workers, packers)),
        (stages.finish, 1, 1),
    ]
    if kind == "slurm":
        return _submit(job, plan, slurm_partition, slurm_time)
    build = _local if kind == "local" else _ray
    with _showing(job), _disk_full_explained(job), _without_partials(job):
        for function, tasks, at_once in plan:
            executor = build(Step(function, job), tasks, min(at_once, tasks), _logs(job, function))
            executor.run()
            if missing := executor.get_incomplete_ranks():
                logs = _logs(job, function)
                raise OSError(
                    f"{len(missing)} of {tasks} tasks failed to {function.__name__}: see {logs}, and "
                    "run the same command again; what is complete is kept"
                )


@contextmanager
def _without_partials(job: Job) -> Iterator[None]:
    """Remove what killed workers had half-written, before the block and after it."""
    remove_partials(Path(job.work))
    try:
        yield
    finally:
        remove_partials(Path(job.work))


@contextmanager
def _disk_full_explained(job: Job) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise OSError(
            f"{error.strerror} for {job.output}: make room and run the same command again, what is "
            "complete is kept",
        ) from error


def _logs(job: Job, function: Callable[[Job, int], None]) -> str:
    return f"{job.work}/logs/{function.__name__}"


def _local(step: Step, tasks: int, workers: int, logs: str) -> PipelineExecutor:
    # Each process tokenizes with as many threads as leave a core for each.
    os.environ.setdefault("RAYON_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    loguru.logger.disable("datatrove")
    return LocalExecutor([step], tasks=tasks, workers=workers, logging_dir=logs)


def _ray(step: Step, tasks: int, workers: int, logs: str) -> PipelineExecutor:
    import ray
    from datatrove.executor.ray import RayPipelineExecutor

    ray.init(ignore_reinit_error=True)
    return RayPipelineExecutor([step], tasks=tasks, workers=workers, logging_dir=logs)


def _submit(job: Job, plan: list[Any], partition: str | None, limit: str) -> None:
    from datatrove.executor.slurm import SlurmPipelineExecutor

    if partition is None:
        raise ValueError("--executor slurm needs --slurm_partition")
    last = None
    for function, tasks, at_once in plan:
        last = SlurmPipelineExecutor(
            [Step(function, job)],
            tasks=tasks,
            time=limit,
            partition=partition,
            workers=min(at_once, tasks),
            job_name=f"prepare-{function.__name__}",
            logging_dir=_logs(job, function),
            depends=last,
        )
    assert last is not None
    last.run()


def _showing(job: Job) -> AbstractContextManager[None]:
    """Show the progress of tokenizing: bytes of text done, tokens per second and the time left."""
    total = sum(task.size for task in job.tasks)
    start = time.monotonic()

    def look(progress: tqdm) -> None:
        done, tokens = Progress.total(job.work)
        rate = tokens / (time.monotonic() - start)
        if done < total:
            progress.set_postfix_str(f"{tokens / 1e6:.1f} M tokens, {rate / 1e6:.2f} M/s", refresh=False)
        else:
            progress.set_description("packing", refresh=False)
        progress.update(done - progress.n)

    return watching(bar("tokenizing", total=total), look)
