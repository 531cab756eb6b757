"""Warns when a pruning run prunes nothing."""

import logging
from collections.abc import Mapping
from typing import Any

from composer.core import State
from composer.loggers import Logger

from llmshearing.callbacks.step_numbers import StepReader

log = logging.getLogger(__name__)

WINDOW = 100  # steps
FEW = 10
GAP = 0.02  # of all parameters that the method reaches
STILL = 0.001


class ConstraintWatch(StepReader):
    """Warns once when the expected sparsity is `GAP` below its target and does not move.

    It does not move when it changes by less than `STILL` within `WINDOW` steps, or within `FEW` steps before
    the end of a shorter run.

    Args:
        remedy: keys of the configuration that the warning names (`Method.remedy`).
    """

    def __init__(self, remedy: str) -> None:
        self.remedy = remedy
        self._since: tuple[int, float] | None = None  # a step, and the expected sparsity then
        self._now: tuple[int, float, float] | None = None  # the last step, its expected and target sparsity
        self._warned = False

    def take(self, state: State, logger: Logger, numbers: Mapping[str, Any]) -> None:
        if "expected_sparsity" not in numbers:
            return
        expected, target = numbers["expected_sparsity"], numbers["target_sparsity"]
        self._now = (state.timestamp.batch.value, expected, target)
        if self._since is None or abs(expected - self._since[1]) >= STILL or target - expected < GAP:
            self._since = (self._now[0], expected)
        elif self._now[0] - self._since[0] >= WINDOW:
            self._warn()

    def fit_end(self, state: State, logger: Logger) -> None:
        if self._now and self._since and self._now[0] - self._since[0] >= FEW:
            self._warn()

    def _warn(self) -> None:
        if self._warned or self._since is None or self._now is None:
            return
        self._warned = True
        step, expected, target = self._now
        log.warning(
            "the expected sparsity is %.4f after step %d and has not moved for %d steps, but its target is "
            "%.4f: nothing is being pruned. Look at %s",
            expected,
            step,
            step - self._since[0],
            target,
            self.remedy,
        )
