"""Ends a run when its training data is exhausted."""

import logging

from composer.core import Callback, State
from composer.loggers import Logger

log = logging.getLogger(__name__)


class EndOfData(Callback):
    """Stops at the end of a stream that does not repeat (`exhausted`: `stop` or `renormalize`)."""

    def epoch_end(self, state: State, logger: Logger) -> None:
        if getattr(state.train_dataloader, "dataset").exhausted:  # noqa: B009
            log.warning("the training data ran out at batch %d: training ends", state.timestamp.batch.value)
            state.stop_training()
