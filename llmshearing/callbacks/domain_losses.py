"""Training losses by domain."""

import math
from collections.abc import Mapping
from typing import Any, cast

from composer.core import State
from composer.loggers import Logger
from torch import Tensor

from llmshearing.callbacks.step_numbers import StepReader
from llmshearing.models.metrics import domain_sums

_LARGEST = 700.0  # whose exponential is still a number


class DomainLosses(StepReader):
    """Logs the training loss of every domain of which the step had samples.

    | key | meaning |
    |---|---|
    | `metrics/train/{domain}_LanguageCrossEntropy` | mean loss of the step's tokens of a domain, in nats |
    | `metrics/train/LanguagePerplexity` | exp of the mean loss over all domains |

    Args:
        set_names: domains, in the order of the batch's `set` indices.
    """

    def __init__(self, set_names: list[str]) -> None:
        self.set_names = set_names
        self._sums: Tensor | None = None

    def batch_start(self, state: State, logger: Logger) -> None:
        self._sums = None

    def after_forward(self, state: State, logger: Logger) -> None:
        batch, outputs = state.batch, cast(Any, state.outputs)
        token_loss = outputs["token_loss"].detach()
        sums = domain_sums(token_loss, outputs["predicted"], batch["set"], len(self.set_names))
        self._sums = sums if self._sums is None else self._sums + sums

    def summed(self, state: State) -> Mapping[str, Tensor]:
        assert self._sums is not None
        return {"domain_sums": self._sums}

    def take(self, state: State, logger: Logger, numbers: Mapping[str, Any]) -> None:
        totals = numbers["domain_sums"]
        metrics = {
            f"metrics/train/{name}_LanguageCrossEntropy": loss / tokens
            for name, (loss, tokens) in zip(self.set_names, totals, strict=True)
            if tokens
        }
        loss, tokens = (sum(column) for column in zip(*totals, strict=True))
        metrics["metrics/train/LanguagePerplexity"] = math.exp(min(loss / tokens, _LARGEST))
        logger.log_metrics(metrics)
