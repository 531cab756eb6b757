"""Writes the checkpoints of a run, each complete or absent."""

import logging
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed
from composer.core import Callback, Event, State, Time
from composer.loggers import Logger
from composer.utils import create_interval_scheduler, dist, reproducibility
from composer.utils.parallelism import FSDP2Config
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save

from llmshearing.checkpoints import run_folder
from llmshearing.checkpoints.sharded import INDEX
from llmshearing.files import LITTLE, plain_words

log = logging.getLogger(__name__)

_PATIENCE = timedelta(
    days=30
)  # a rank may wait this long: the watchdog distinguishes a slow save from a hang


class Checkpointing(Callback):
    """Saves the training state every `interval` and at the end of the run (`run_folder.py`).

    A failed save (a full disk) ends the run on every rank with the reason; what was saved before stays.

    Args:
        folder: the run's folder.
        interval: batches between checkpoints, such as 200ba.
        keep: how many to keep, the last one always; -1: all.
        weights_only: save the model alone.
        sharded: every process writes its part of a folder; else rank 0 writes one file.
        beat: called now and then while a save makes progress.
    """

    def __init__(
        self,
        folder: Path,
        interval: str,
        keep: int,
        weights_only: bool,
        sharded: bool,
        beat: Callable[[], object] = lambda: None,
    ) -> None:
        self.folder = folder
        self.keep = keep
        self.weights_only = weights_only
        self.sharded = sharded
        self.beat = beat
        self._is_time = create_interval_scheduler(interval)
        self._saved_at: int | None = None
        self._group: Any = None

    def init(self, state: State, logger: Logger) -> None:
        if dist.get_world_size() > 1:
            self._group = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)

    def before_load(self, state: State, logger: Logger) -> None:
        if self.sharded:  # from now on the state hands out its own shards
            state.fsdp_config = FSDP2Config(state_dict_type="sharded")

    def fit_start(self, state: State, logger: Logger) -> None:
        self._saved_at = state.timestamp.batch.value  # nothing is new before the first step

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        if self._is_time(state, Event.BATCH_CHECKPOINT):
            self.save(state)

    def fit_end(self, state: State, logger: Logger) -> None:
        self.save(state)  # the end of the data can end a run between two intervals

    def save(self, state: State) -> None:
        """Save now, unless this step was saved already. Every rank calls this.

        Raises:
            OSError: when the checkpoint could not be written, on every rank.
        """
        step = state.timestamp.batch.value
        if step == self._saved_at:
            return
        self._saved_at = step
        contents = self._contents(state)
        name = run_folder.checkpoint_name(state.timestamp.epoch.value, step, self.sharded)
        written = run_folder.place_of_writing(self.folder) / name
        write = self._write_sharded if self.sharded else self._write_whole
        try:
            self._together(lambda: _on_rank_0(lambda: run_folder.start_writing(self.folder)))
            files = self._together(lambda: write(contents, written))
            self._together(lambda: _on_rank_0(lambda: self._commit(written, step, files)))
        except OSError as error:
            _on_rank_0(lambda: run_folder.clear_incomplete(self.folder))
            raise OSError(f"The checkpoint of step {step} could not be saved: {error}") from error

    def _contents(self, state: State) -> dict[str, Any]:
        if self.weights_only:
            record = {c: s for c, s in state.state_dict()["callbacks"].items() if c == "RunRecord"}
            return {"state": {"model": state.get_model_state_dict(), "callbacks": record}}
        saved = state.state_dict()
        saved.pop("run_name", None)  # the record has it, as it is written in the file
        return {
            "state": saved,
            "rng": reproducibility.get_rng_state(),
            "division": division(state),
            "max_duration": cast(Time, state.max_duration).to_timestring(),
        }

    def _commit(self, written: Path, step: int, files: dict[str, Any]) -> None:
        final = run_folder.commit(written, step, files)
        if self.keep >= 0:
            run_folder.keep_last(self.folder, self.keep)
        log.info("saved %s", final)

    def _together(self, action: Callable[[], dict[str, Any] | None]) -> dict[str, Any]:
        """The results of `action` on all ranks, merged.

        Raises:
            OSError: on every rank when one of them failed, so that no rank waits for it.
        """
        failure, result = None, None
        try:
            result = action()
        except (OSError, RuntimeError, CheckpointException) as error:  # torch.save wraps OSErrors
            failure = _reason(error, self.folder)
        outcomes = dist.all_gather_object((failure, result), self._group)
        failures = sorted({failure for failure, _ in outcomes if failure})
        if failures:
            raise OSError("; ".join(failures))
        return {name: value for _, result in outcomes for name, value in (result or {}).items()}

    def _write_whole(self, contents: dict[str, Any], path: Path) -> dict[str, Any]:
        """Rank 0 writes all of `contents` to one file; returns what was written, by name."""
        if dist.get_global_rank() != 0:
            return {}
        torch.save(contents, path)
        run_folder.sync(path)
        return {path.name: run_folder.describe_file(path, self.beat)}

    def _write_sharded(self, contents: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Every rank writes its part of `contents` to `folder`; returns what this rank wrote, by name."""
        planner = DefaultSavePlanner(dedup_save_to_lowest_rank=True)
        writer = FileSystemWriter(folder)
        save(contents, storage_writer=writer, planner=planner, process_group=self._group)
        rank = dist.get_global_rank()
        mine = [*folder.glob(f"__{rank}_*"), *([folder / INDEX] if rank == 0 else [])]
        return {path.name: run_folder.describe_file(path, self.beat) for path in mine}


def division(state: State) -> dict[str, int]:
    """How a batch is divided: number of processes, and sequences in a microbatch of one of them."""
    sequences = cast(Any, state.train_dataloader).batch_size
    micro = cast(int, state.device_train_microbatch_size)
    return {"processes": dist.get_world_size(), "microbatch": min(micro, sequences)}


def _on_rank_0(action: Callable[[], Any]) -> None:
    if dist.get_global_rank() == 0:
        action()


def _reason(error: BaseException, folder: Path) -> str:
    """A write error in the user's terms."""
    words = str(error).strip().splitlines()
    free = shutil.disk_usage(folder).free if folder.is_dir() else None
    text = f"rank {dist.get_global_rank()}: {plain_words(words[-1]) if words else type(error).__name__}"
    if free is not None and free < LITTLE:
        return f"{text} ({folder} has {free:,} bytes left: make room, or lower save_num_checkpoints_to_keep)"
    return text
