"""The hard-concrete distribution: a gate in [0, 1] that is exactly 0 or 1 with positive probability.

Pure functions over tensors. `log_alpha` is the learned location of a gate; one gate a unit (a head, a
hidden dimension, ...). Source: Louizos et al. 2018 and Sheared-LLaMA (arXiv 2310.06694) appendix A, with
the constants of the released code, which uses the temperature 2/3 where the paper states 0.83.

    s = sigmoid((logit(u) + log_alpha) / T),  u ~ U(eps, 1 - eps)
    z = clip(s * (zeta - gamma) + gamma, 0, 1)
"""

import math

import torch
from torch import Tensor

GAMMA = -0.1
ZETA = 1.1
TEMPERATURE = 2.0 / 3.0
EPSILON = 1e-6
MAGICAL_NUMBER = 0.8  # the scale of log_alpha in a deterministic gate, so named in the literature
LOG_ALPHA_LIMIT = math.log(100.0)
INITIAL_MEAN = 5.0
INITIAL_STD = 0.01
ORDERED_SPREAD = 2.0


def sample(log_alpha: Tensor, noise: Tensor) -> Tensor:
    """Draw gates z in [0, 1], differentiable in `log_alpha`.

    Args:
        log_alpha: locations, any shape.
        noise: uniform numbers in [0, 1), the same shape; mapped to (eps, 1 - eps).
    """
    u = noise * (1 - 2 * EPSILON) + EPSILON
    s = torch.sigmoid((torch.logit(u) + log_alpha) / TEMPERATURE)
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)


def ordered_start(ranks: Tensor) -> Tensor:
    """Initial log_alpha of units in the order of their importance, where all others start at the limit.

    limit - 2 (1 - rank): every gate is open in at least 98 of 100 draws, and equal pushes close the least
    important ones first.

    Args:
        ranks: from 0 for the least important to 1, any shape.
    """
    return LOG_ALPHA_LIMIT - ORDERED_SPREAD * (1 - ranks)


def keep_probability(log_alpha: Tensor) -> Tensor:
    """P(z > 0) of every gate, sigmoid(log_alpha - T log(-gamma / zeta)), within [eps, 1 - eps]."""
    shift = TEMPERATURE * math.log(-GAMMA / ZETA)
    return torch.sigmoid(log_alpha - shift).clamp(EPSILON, 1 - EPSILON)


def expected_zeros(log_alpha: Tensor) -> Tensor:
    """How many gates of each row (last axis) are expected to be zero, rounded to whole units; [...]."""
    size = log_alpha.shape[-1]
    return torch.round(size - keep_probability(log_alpha).sum(-1)).long()


def deterministic(log_alpha: Tensor, zeros: Tensor | int) -> Tensor:
    """Gates without noise: sigmoid(0.8 log_alpha / T), the `zeros` lowest of each row set to exactly 0.

    Open gates stay soft (0.996 at the limit of log_alpha). Ties fall to the lower index, so that every
    process and every later reading of a checkpoint agree. No loop over rows and no device-to-host copy.

    Args:
        log_alpha: locations, [..., n]; the last axis is a row.
        zeros: gates to close in each row, one number or [...].
    """
    soft = torch.sigmoid(MAGICAL_NUMBER * log_alpha / TEMPERATURE)
    order = torch.argsort(log_alpha, dim=-1, stable=True)
    positions = torch.arange(log_alpha.shape[-1], device=log_alpha.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(-1, order, positions)
    closed = torch.as_tensor(zeros, device=log_alpha.device).unsqueeze(-1)
    return soft * (rank >= closed)
