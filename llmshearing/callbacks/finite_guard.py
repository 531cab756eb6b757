"""Stops a run whose loss or gradient is no number, before the optimizer takes it in."""

import logging
from typing import Any, cast

import torch
from composer.core import Callback, Precision, State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor
from torch.nn.utils import get_total_norm

log = logging.getLogger(__name__)


class FiniteGuard(Callback):
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

    def batch_start(self, state: State, logger: Logger) -> None:
        self._batch = {key: state.batch[key] for key in ("set", "idx")}
        self._loss = None

    def after_loss(self, state: State, logger: Logger) -> None:
        loss = cast(Any, state.loss)["total"].detach()
        self._loss = loss if self._loss is None else self._loss + loss

    def after_train_batch(self, state: State, logger: Logger) -> None:
        """Runs between the backward pass and the optimizer's step.

        Raises:
            ValueError: on every rank, when no more steps may be left out.
        """
        assert self._loss is not None
        norm = torch.zeros_like(self._loss) if state.precision == Precision.AMP_FP16 else gradient_norm(state)
        finite = torch.stack([self._loss, norm]).isfinite().all().to(torch.uint8).reshape(1)
        dist.all_reduce(finite, reduce_operation="MIN")
        if finite.item():
            return
        what = self._describe(state, norm)
        if self.skipped >= self.max_skipped_steps:
            raise ValueError(
                f"{what} Nothing of this step was learned or saved. Lower optimizer.lr, look at these "
                f"samples, or let such steps be left out: max_skipped_steps={self.max_skipped_steps + 1}."
            )
        self.skipped += 1
        log.warning("%s Left out, %d of %d.", what, self.skipped, self.max_skipped_steps)
        for optimizer in state.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def _describe(self, state: State, norm: Tensor) -> str:
        losses, samples = [], {}
        mine = (float(cast(Tensor, self._loss)), self._batch["set"].tolist(), self._batch["idx"].tolist())
        for loss, domains, indices in dist.all_gather_object(mine):
            losses.append(f"{loss:.6g}")
            for domain, index in zip(domains, indices, strict=True):
                samples.setdefault(self.set_names[domain], []).append(index)
        listed = "; ".join(f"{len(ids)} of {name}: {sorted(ids)}" for name, ids in sorted(samples.items()))
        return (
            f"Step {state.timestamp.batch.value} is not finite: loss {', '.join(losses)} by rank, "
            f"gradient norm {float(norm):.6g}. Its samples: {listed}."
        )

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.skipped = state["skipped"]


def gradient_norm(state: State) -> Tensor:
    """The 2-norm of all gradients, over all processes; a scalar."""
    gradients = [p.grad for p in state.model.parameters() if p.grad is not None]
    norm = get_total_norm(gradients)
    return cast(Any, norm).full_tensor() if hasattr(norm, "full_tensor") else norm
