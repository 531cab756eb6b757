"""Ends a run at the end of its step when the cluster asks for the machine back."""

import logging
import signal
from typing import Any

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from llmshearing.callbacks.checkpointing import Checkpointing

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: try again


class Interrupted(SystemExit):
    """A signal ended the run after its checkpoint; the process exits with status 75."""


class StopOnSignal(Callback):
    """On SIGTERM or SIGUSR1 to any rank: finish the step and its evaluation, save, exit with status 75.

    Args:
        checkpointing: what saves; None: a run without a folder just ends.
    """

    def __init__(self, checkpointing: Checkpointing | None) -> None:
        self.checkpointing = checkpointing
        self._received = 0
        self._before: dict[int, Any] = {}

    def fit_start(self, state: State, logger: Logger) -> None:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        received = state.device.tensor_to_device(torch.tensor([self._received]))
        dist.all_reduce(received, reduce_operation="MAX")
        if not received.item():
            return
        if self.checkpointing is not None:
            self.checkpointing.save(state)
        name = signal.Signals(int(received.item())).name
        log.warning("%s: ending after step %d; start again to go on", name, state.timestamp.batch.value)
        self._before = {}  # a launcher that ends the other ranks must not cut this one short
        raise Interrupted(INTERRUPTED)

    def close(self, state: State, logger: Logger) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: Any) -> None:
        self._received = number
