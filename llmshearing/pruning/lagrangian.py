"""The constraint that drives expected sparsity to its target: pure functions.

Each mask kind m has a sparsity s_m, a target t_m and two multipliers (Sheared-LLaMA section 2.1):

    L_m = mean over rows of  lambda_1 (s - t) + lambda_2 (s - t)^2

The model's parameters descend on the loss; the multipliers ascend.
"""

import torch
from torch import Tensor


class _Ascend(torch.autograd.Function):
    """Identity whose gradient is negated: gradient descent on the result ascends."""

    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Tensor:
        return -grads[0]


def ascend(multiplier: Tensor) -> Tensor:
    """`multiplier`, such that an optimizer which minimizes the loss maximizes it over this tensor.

    Adam's step is odd in the gradient, so the trajectory is that of the released code, which gives the
    multipliers a negative learning rate.
    """
    return _Ascend.apply(multiplier)  # type: ignore[return-value]


def penalty(sparsity: Tensor, target: float | Tensor, lambda_1: Tensor, lambda_2: Tensor) -> Tensor:
    """lambda_1 (s - t) + lambda_2 (s - t)^2, averaged over rows; a scalar.

    Args:
        sparsity: expected sparsity, one value a row or a scalar, in [0, 1].
        target: the sparsity asked for now.
    """
    excess = sparsity - target
    return (lambda_1 * excess + lambda_2 * excess.square()).mean()


def scheduled_target(step: int, warmup_steps: int, start: float, target: float) -> float:
    """The target in force at `step`: linear from `start` to `target` over `warmup_steps`, then constant."""
    progress = min(1.0, step / warmup_steps) if warmup_steps > 0 else 1.0
    return start + (target - start) * progress
