"""Stops a run whose loss or gradient is no number, before the optimizer takes it in."""

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
    """Looks at every step's losses and gradient norm after the backward pass.

    A step that is not finite is left out, weights and moments as they were, up to `max_skipped_steps` times
    in a run; one more ends it, with the step, its domains and its samples. Under amp_fp16 gradients overflow
    in the ordinary course of loss scaling, so there only losses are looked at.

    Args:
        max_skipped_steps: how many steps may be left out; 0: the first ends the run.
        set_names: domains, in the order of the batch's `set` indices; None: the data is one.
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
        """Leave this step out, if it is not finite.

        Raises:
            ValueError: on every rank, when no more steps may be left out.
        """
        if not numbers["ranks_not_finite"]:
            return
        what = self._describe(state)
        if self.skipped >= self.max_skipped_steps:
            raise ValueError(
                f"{what} Nothing of this step was learned or saved. Lower optimizer.lr, look at these "
                f"samples, or let such steps be left out: max_skipped_steps={self.max_skipped_steps + 1}."
            )
        self.skipped += 1
        log.warning("%s Left out, %d of %d.", what, self.skipped, self.max_skipped_steps)
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
