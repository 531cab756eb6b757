"""Progress of a run without a terminal: a line at an interval of steps, and one at each evaluation."""

import sys
import time
from datetime import timedelta
from typing import Any, TextIO

from composer.core import State
from composer.loggers import Logger, LoggerDestination
from composer.utils import dist

from llmshearing.config.durations import batches


class ProgressLines(LoggerDestination):
    """Writes the progress of a step as a line, with aligned columns:

        step   20/3200  loss 2.1534  lagrangian 0.0123  sparsity 0.031 of 0.034  14,752 tokens/s  7:51:02 left

    Lagrangian and sparsity (expected, of its target now) appear while pruning. The rate does not
    count evaluations; the time left does.

    Args:
        interval: steps between lines, such as 10ba.
        stream: where to write; default: standard error.
    """

    def __init__(self, interval: str = "1ba", stream: TextIO | None = None) -> None:
        self.interval = batches(interval)
        self.stream = stream or sys.stderr
        self._values: dict[str, Any] = {}
        self._begun = self._last = (0.0, 0.0)  # a time, and the part of the run or the token then
        self._evaluating_since = self._evaluated = 0.0

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self._values.update(metrics)

    def fit_start(self, state: State, logger: Logger) -> None:
        now = time.monotonic()
        self._begun = (now, _fraction(state))
        self._last = (now, float(state.timestamp.token.value))

    def eval_start(self, state: State, logger: Logger) -> None:
        self._evaluating_since = time.monotonic()

    def eval_end(self, state: State, logger: Logger) -> None:
        self._evaluated += time.monotonic() - self._evaluating_since
        self._write(evaluation_line(state.timestamp.batch.value, self._values))

    def batch_end(self, state: State, logger: Logger) -> None:
        step = state.timestamp.batch.value
        if step % self.interval == 0 or state.get_elapsed_duration() == 1.0:
            rate, left = self._measure(state)
            self._write(step_line(step, round(step / _fraction(state)), self._values, rate, left))

    def _measure(self, state: State) -> tuple[float, timedelta]:
        """Tokens a second since the last line, and the time left at the pace of this launch."""
        now, tokens = time.monotonic(), float(state.timestamp.token.value)
        rate = (tokens - self._last[1]) / max(now - self._last[0] - self._evaluated, 1e-9)
        begun, fraction = self._begun
        pace = (now - begun) / (_fraction(state) - fraction)
        self._last, self._evaluated = (now, tokens), 0.0
        return rate, timedelta(seconds=round(pace * (1 - _fraction(state))))

    def _write(self, line: str) -> None:
        if dist.get_global_rank() == 0:
            self.stream.write(line + "\n")
            self.stream.flush()


def step_line(step: int, steps: int, values: dict[str, Any], rate: float, left: timedelta) -> str:
    """The line of a step; `values` are the metrics last logged, `rate` is in tokens a second."""
    parts = [f"step {step:>{len(str(steps)) + 1}}/{steps}", f"loss {_number(values, 'loss/train/ce_loss')}"]
    if "loss/train/lag_loss" in values:
        parts.append(f"lagrangian {_number(values, 'loss/train/lag_loss'):>7}")
    if "metrics/train/expected_sparsity" in values:
        expected, target = (
            float(values.get(f"metrics/train/{name}_sparsity", 0.0)) for name in ("expected", "target")
        )
        parts.append(f"sparsity {expected:.3f} of {target:.3f}")
    return "  ".join([*parts, f"{rate:>9,.0f} tokens/s", f"{left} left"])


def evaluation_line(step: int, values: dict[str, Any]) -> str:
    """The line of an evaluation after `step` steps: mean loss, and the loss of every domain."""
    ending = "_LanguageCrossEntropy"
    losses = {
        key.removeprefix("metrics/eval/").removesuffix(ending): float(value)
        for key, value in values.items()
        if key.startswith("metrics/eval/") and key.endswith(ending)
    }
    domains = "  ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
    mean = _number(values, "metrics/eval/LanguageCrossEntropy")
    return f"evaluation after step {step}: loss {mean}  {domains}".rstrip()


def _number(values: dict[str, Any], key: str) -> str:
    return f"{float(values[key]):.4f}" if key in values else "-"


def _fraction(state: State) -> float:
    """How much of the run is done, 0 to 1."""
    elapsed = state.get_elapsed_duration()
    return 0.0 if elapsed is None else float(elapsed.value)
