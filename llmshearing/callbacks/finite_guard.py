"""Skips or stops at steps with a non-finite loss or gradient, before the optimizer uses them."""

import logging
from collections.abc import Mapping
from typing import Any, cast

import torch
from composer.core import Precision, State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor

from llmshearing.callbacks.clipping import gradient_norm
from llmshearing.callbacks.step_numbers import StepReader

log = logging.getLogger(__name__)


class FiniteGuard(StepReader):
    """Checks the losses and the gradient norm of every step after the backward pass.

    Up to `max_skipped_steps` steps of a run that are not finite are skipped: weights and moments stay as they
    were. One more ends the run with an error that names the step, its domains and its samples. Under
    amp_fp16, loss scaling makes gradients overflow now and then, so only losses are checked.

    Args:
        max_skipped_steps: how many steps to skip before the run stops; 0: the first one stops it.
        set_names: domains, in the order of the batch's `set` indices; None: there is one.
    """

    def __init__(self, max_skipped_steps: int = 0, set_names: list[str] | None = None) -> None:
        self.max_skipped_steps = max_skipped_steps
        self.set_names = set_names or ["data"]
        self.skipped = 0
        self._batch: dict[str, Tensor] = {}
        self._loss: Tensor | None = None
        self._norm: Tensor | None = None

    def batch_start(self, state: State, logger: Logger) -> None:
        self._batch = {key: state.batch[key] for key in ("set", "idx")}
        self._loss = None

    def after_loss(self, state: State, logger: Logger) -> None:
        loss = cast(Any, state.loss)["total"].detach()
        self._loss = loss if self._loss is None else self._loss + loss

    def summed(self, state: State) -> Mapping[str, Tensor]:
        assert self._loss is not None
        scaled = state.precision == Precision.AMP_FP16
        self._norm = torch.zeros_like(self._loss) if scaled else gradient_norm(state)
        return {"ranks_not_finite": ~torch.stack([self._loss, self._norm]).isfinite().all()}

    def take(self, state: State, logger: Logger, numbers: Mapping[str, Any]) -> None:
        """Skip this step if it is not finite.

        Raises:
            ValueError: on every rank, when no more steps may be skipped.
        """
        if not numbers["ranks_not_finite"]:
            return
        what = self._describe(state)
        if self.skipped >= self.max_skipped_steps:
            raise ValueError(
                f"{what} Nothing of this step was learned or saved. Lower optimizer.lr, look at "
                f"these samples, or skip such steps: max_skipped_steps={self.max_skipped_steps + 1}."
            )
        self.skipped += 1
        log.warning("%s Skipped, %d of %d.", what, self.skipped, self.max_skipped_steps)
        for optimizer in state.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def _describe(self, state: State) -> str:
        losses, samples = [], {}
        mine = (float(cast(Tensor, self._loss)), self._batch["set"].tolist(), self._batch["idx"].tolist())
        for loss, domains, indices in dist.all_gather_object(mine):
            losses.append(f"{loss:.6g}")
            for domain, index in zip(domains, indices, strict=True):
                samples.setdefault(self.set_names[domain], []).append(index)
        listed = "; ".join(f"{len(ids)} of {name}: {sorted(ids)}" for name, ids in sorted(samples.items()))
        return (
            f"Step {state.timestamp.batch.value} is not finite: loss {', '.join(losses)} by rank, "
            f"gradient norm {float(cast(Tensor, self._norm)):.6g}. Its samples: {listed}."
        )

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.skipped = state["skipped"]
