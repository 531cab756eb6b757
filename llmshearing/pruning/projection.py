"""The constraint as a projection: after every step log-alphas are shifted until sparsity is on schedule.

Where multipliers push the expected sparsity towards its target and past it, a projection sets it: all
log-alphas of a row are shifted by one constant, within their limits, so that the row's expected sparsity is
the target. The order of the units and what the loss taught about them stay as they are. Pure functions.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from llmshearing.pruning.hard_concrete import LOG_ALPHA_LIMIT, keep_probability

HALVINGS = 40  # of an interval of at most about 20: the shift is exact to fp32
_BEYOND = LOG_ALPHA_LIMIT + 1e-3  # so that every unit ends exactly at its limit, however sums are rounded
EXACT = 1e-6  # a sparsity this close to its target is left as it is


def sparsity_range() -> tuple[float, float]:
    """The least and the largest expected sparsity within the limits of log-alpha: 0.0020 and 0.9529."""
    limits = torch.tensor([LOG_ALPHA_LIMIT, -LOG_ALPHA_LIMIT], dtype=torch.float64)
    least, largest = (1 - keep_probability(limits)).tolist()
    return least, largest


def shifted(log_alpha: Tensor, shift: Tensor) -> Tensor:
    """log_alpha + shift, within the limits of log-alpha."""
    return (log_alpha + shift).clamp(-LOG_ALPHA_LIMIT, LOG_ALPHA_LIMIT)


def project_rows(log_alpha: Tensor, target: float) -> Tensor:
    """log_alpha [..., n], every row shifted to the expected sparsity `target`, or as near as limits allow."""

    def sparsity(shift: Tensor) -> Tensor:
        return 1 - keep_probability(shifted(log_alpha.double(), shift[..., None])).mean(-1)

    low, high = -_BEYOND - log_alpha.amax(-1), _BEYOND - log_alpha.amin(-1)
    return shifted(log_alpha, find_shift(sparsity, target, low.double(), high.double())[..., None].float())


def project_together(
    log_alphas: Mapping[str, Tensor], target: float, sparsity_of: Callable[[dict[str, Tensor]], Tensor]
) -> dict[str, Tensor]:
    """All log-alphas, shifted by one constant to the overall expected sparsity `target`.

    Args:
        sparsity_of: the overall sparsity, given every unit's probability to be open.
    """
    wide = {kind: log_alpha.double() for kind, log_alpha in log_alphas.items()}

    def sparsity(shift: Tensor) -> Tensor:
        return sparsity_of({kind: keep_probability(shifted(a, shift)) for kind, a in wide.items()})

    low = -_BEYOND - torch.stack([a.max() for a in wide.values()]).max()
    high = _BEYOND - torch.stack([a.min() for a in wide.values()]).min()
    shift = find_shift(sparsity, target, low, high).float()
    return {kind: shifted(log_alpha, shift) for kind, log_alpha in log_alphas.items()}


def find_shift(sparsity: Callable[[Tensor], Tensor], target: float, low: Tensor, high: Tensor) -> Tensor:
    """The shifts at which `sparsity`, which falls with them, is `target`, by bisection.

    Args:
        sparsity: of each row, given its shift.
        low: shifts at which everything is as closed as it can be.
        high: shifts at which everything is as open as it can be.

    Returns:
        0 where the sparsity is `target` already, so that projecting twice changes nothing; an end of the
        interval where the target is out of reach.
    """
    zero = torch.zeros_like(low)
    least, largest, now = (sparsity(shift) for shift in (high, low, zero))
    closed, opened = low, high
    for _ in range(HALVINGS):
        middle = (closed + opened) / 2
        too_open = sparsity(middle) < target
        closed, opened = torch.where(too_open, closed, middle), torch.where(too_open, middle, opened)
    found = torch.where(target <= least, high, torch.where(target >= largest, low, (closed + opened) / 2))
    return torch.where((now - target).abs() <= EXACT, zero, found)
