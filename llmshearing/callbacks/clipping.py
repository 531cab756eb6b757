"""Gradient clipping that computes the gradient norm once, for itself and for other callbacks."""

from typing import Any, cast

import composer.algorithms
from composer.algorithms.gradient_clipping import apply_gradient_clipping
from composer.core import Event, State
from composer.loggers import Logger
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm


class GradientClipping(composer.algorithms.GradientClipping):
    """Composer's gradient clipping, which keeps the norm; `adaptive` does not clip masks and multipliers.

    `adaptive` scales a gradient by the norm of its weight; a multiplier starts at 0, and would stay there.

    Attributes:
        norm: 2-norm of all gradients of the last step before they were clipped.
    """

    norm: Tensor

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if event != Event.AFTER_TRAIN_BATCH:
            return
        model = state.model
        total = _total_norm(model)
        self.norm = _whole(total)
        if self.clipping_type == "norm":
            clip_grads_with_norm_(model.parameters(), self.clipping_threshold, total)
            return
        weights = cast(Any, model).model.transformer if self.clipping_type == "adaptive" else model
        apply_gradient_clipping(weights, self.clipping_type, self.clipping_threshold, fsdp_enabled=False)


def gradient_norm(state: State) -> Tensor:
    """The 2-norm of all gradients over all processes, before clipping; a scalar, computed once a step."""
    for algorithm in state.algorithms:
        if isinstance(algorithm, GradientClipping):
            return algorithm.norm
    return _whole(_total_norm(state.model))


def _total_norm(model: nn.Module) -> Tensor:
    return get_total_norm([p.grad for p in model.parameters() if p.grad is not None])


def _whole(norm: Any) -> Tensor:
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
