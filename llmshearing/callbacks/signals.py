"""Ends a run at the end of its step when the cluster reclaims the machine."""

import logging
import signal
from collections.abc import Mapping
from typing import Any, cast

import torch
from composer.core import State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor

from llmshearing.callbacks.checkpointing import Checkpointing
from llmshearing.callbacks.step_numbers import StepReader

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: try again


class Interrupted(SystemExit):
    """A signal ended the run after its checkpoint; the process exits with status 75."""


class StopOnSignal(StepReader):
    """On SIGTERM or SIGUSR1 to any rank: finish the step and its evaluation, save, exit with status 75.

    Args:
        checkpointing: saves the run; None: a run without a folder ends unsaved.
    """

    def __init__(self, checkpointing: Checkpointing | None) -> None:
        self.checkpointing = checkpointing
        self._received: set[int] = set()  # by this rank
        self._agreed: str | None = None  # what any rank received, the same on all of them
        self._before: dict[int, Any] = {}

    def fit_start(self, state: State, logger: Logger) -> None:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def summed(self, state: State) -> Mapping[str, Tensor]:
        received = torch.tensor([float(number in self._received) for number in SIGNALS])
        return {"ranks_signalled": cast(Tensor, state.device.tensor_to_device(received))}

    def take(self, state: State, logger: Logger, numbers: Mapping[str, Any]) -> None:
        signalled = zip(SIGNALS, numbers["ranks_signalled"], strict=True)
        self._agreed = next((number.name for number, ranks in signalled if ranks), None)

    def eval_end(self, state: State, logger: Logger) -> None:
        if self._before:  # a signal during a long evaluation does not wait for the next step
            ranks = self.summed(state)["ranks_signalled"]
            dist.all_reduce(ranks)
            self.take(state, logger, {"ranks_signalled": ranks.tolist()})

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        if self._agreed is None:
            return
        if self.checkpointing is not None:
            self.checkpointing.save(state)
        log.warning(
            "%s: ending after step %d; start again to resume", self._agreed, state.timestamp.batch.value
        )
        self._before = {}  # a launcher that ends the other ranks must not cut this one short
        raise Interrupted(INTERRUPTED)

    def close(self, state: State, logger: Logger) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: Any) -> None:
        self._received.add(number)
