"""Every metric of a run, one line of JSON a step."""

import json
from pathlib import Path
from typing import Any

from composer.core import State
from composer.loggers import Logger, LoggerDestination
from composer.utils import dist

from llmshearing.files import replacing


class MetricsFile(LoggerDestination):
    """Writes `metrics.jsonl` into the run's folder: `{"step": 7, "loss/train/total": 3.1, ...}`.

    The metrics of step n, which turns the model after n steps into that after n + 1, share a line; those
    of an evaluation after n steps have a line of their own before it. A run that resumes from a checkpoint
    drops the lines of later steps, so the file is that of an uninterrupted run.

    Args:
        path: the file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._step: int | None = None
        self._values: dict[str, float] = {}

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if dist.get_global_rank() != 0 or step is None:
            return
        if step != self._step:
            self._write()
            self._step = step
        self._values.update({key: float(value) for key, value in metrics.items()})

    def fit_start(self, state: State, logger: Logger) -> None:
        if dist.get_global_rank() != 0:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text(errors="replace").splitlines() if self.path.exists() else []
        begin = state.timestamp.batch.value
        with replacing(self.path) as draft:
            draft.write_text("".join(f"{line}\n" for line in lines if _is_before(line, begin)))

    # A line is on disk before a checkpoint of its step: a run resumed from there does not repeat it.

    def batch_end(self, state: State, logger: Logger) -> None:
        self._write()

    def eval_end(self, state: State, logger: Logger) -> None:
        self._write()

    def fit_end(self, state: State, logger: Logger) -> None:
        self._write()

    def close(self, state: State, logger: Logger) -> None:
        self._write()

    def _write(self) -> None:
        if self._values:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": self._step, **self._values}) + "\n")
        self._values = {}


def _is_before(line: str, step: int) -> bool:
    """Whether a line was written before step `step` began; a damaged one counts as later."""
    try:
        values = json.loads(line)
        return values["step"] < step or (values["step"] == step and "loss/train/total" not in values)
    except (ValueError, TypeError, KeyError):
        return False
