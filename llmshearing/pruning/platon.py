"""Scores of parameters by sensitivity and its uncertainty, and how many dimensions they leave open (PLATON).

Formulas of Just CHOP (arXiv 2305.14864) section 3.2; constants and the cubic schedule as in PLATON's released
code. W is a weight, g its gradient.
"""

import torch
from torch import Tensor


def sensitivity(weight: Tensor, gradient: Tensor) -> Tensor:
    """I = |W g|: how much the loss would change without each entry, to first order (equation 1)."""
    return (weight * gradient).abs_()


def smooth(
    smoothed: Tensor,
    uncertainty: Tensor,
    sensitivity: Tensor,
    sensitivity_beta: float,
    uncertainty_beta: float,
) -> None:
    """One window of both averages, in place (equations 2 to 4).

    S <- b1 S + (1 - b1) I, then U <- b2 U + (1 - b2) |I - S|.
    """
    smoothed.lerp_(sensitivity, 1 - sensitivity_beta)
    uncertainty.lerp_((sensitivity - smoothed).abs_(), 1 - uncertainty_beta)


def progress(done: int, steps: int, warm: int, final: int) -> float:
    """How much of the closing is due after `done` of `steps` steps, from 0 to 1.

    It begins after `warm` steps and is complete `final` steps before the end; where they do not leave any
    between them, it is complete one step after the first, or with the last.
    """
    span = max(1, steps - final - warm)
    return min(1.0, max(0, done - warm) / span) if done < steps else 1.0


def still_open(schedule: str, size: int, kept: int, part: float) -> int:
    """How many of `size` dimensions are open where `kept` stay in the end.

    Args:
        schedule: `cubic`, kept + (size - kept) (1 - part)^3, or `exponential`, size (kept / size)^part.
        part: `progress`.
    """
    if schedule == "cubic":
        return round(kept + (size - kept) * (1 - part) ** 3)
    return round(size * (kept / size) ** part)


def highest(scores: Tensor, count: int) -> Tensor:
    """1 for the `count` highest of each row, of equal ones the first, and 0 for the others; [..., n]."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return torch.zeros_like(scores).scatter_(-1, order[..., :count], 1.0)
