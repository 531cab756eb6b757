"""N:M sparsity: which N of M neighbouring weights stay. Pure functions of tensors.

O rows of a weight, I columns (its inputs), M size of a block along the inputs, G = I / M blocks of a row, N
weights that stay in each, C = M over N ways to choose them. Logits are [O, C, G]: with the candidates in
the middle a softmax over them is ten times as fast on a CPU as over a last axis of six.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

MOST_CANDIDATES = 70  # of 4:8


@dataclass(frozen=True)
class Pattern:
    """`keep` of every `group` neighbouring weights of a row stay."""

    keep: int
    group: int

    def __str__(self) -> str:
        return f"{self.keep}:{self.group}"

    @property
    def choices(self) -> int:
        """C, the number of ways to choose a block's weights."""
        return math.comb(self.group, self.keep)

    @property
    def sparsity(self) -> float:
        """The share of weights that are removed."""
        return 1 - self.keep / self.group

    def candidates(self) -> Tensor:
        """S [C, M], bool: every mask of a block, in lexicographic order of the positions that stay.

        For 2:4: 1100, 1010, 1001, 0110, 0101, 0011. Checkpoints store it beside the logits, whose axis C it
        explains.
        """
        found = torch.zeros(self.choices, self.group, dtype=torch.bool)
        for row, kept in enumerate(combinations(range(self.group), self.keep)):
            found[row, list(kept)] = True
        return found

    def problem(self, name: str, inputs: int) -> str | None:
        """Why a weight with `inputs` columns cannot have this pattern; None when it can."""
        if inputs % self.group == 0:
            return None
        return (
            f"{name} has {inputs} inputs, which blocks of {self.group} do not divide: pattern {self} needs a "
            f"model whose projections have a multiple of {self.group} inputs."
        )


def parse(text: str, name: str = "pattern") -> Pattern:
    """The pattern that `N:M` names: N of M stay.

    Raises:
        ValueError: when the text is not of that form, or 0 < N < M does not hold.
    """
    parts = str(text).split(":")
    if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
        raise ValueError(f"{name} is {text!r}; expected N:M, such as 2:4, of which N of M weights stay.")
    pattern = Pattern(*map(int, parts))
    if not 0 < pattern.keep < pattern.group:
        raise ValueError(
            f"{name} is {text}, which keeps {pattern.keep} of {pattern.group}; expected N:M with N from 1 to "
            "M - 1, such as 2:4."
        )
    if pattern.choices > MOST_CANDIDATES:
        raise ValueError(
            f"{name} is {text}, a block of which has {pattern.choices:,} masks; at most "
            f"{MOST_CANDIDATES}, those of 4:8, are supported."
        )
    return pattern


# ------------------------------------------------------------------ masks


def top_mask(scores_OI: Tensor, pattern: Pattern) -> Tensor:
    """[O, I], bool: the N highest scores of each block; of equal ones those to the left."""
    blocks = scores_OI.unflatten(-1, (-1, pattern.group))
    order = blocks.argsort(dim=-1, descending=True, stable=True)
    mask = torch.zeros_like(blocks, dtype=torch.bool)
    return mask.scatter_(-1, order[..., : pattern.keep], True).flatten(-2)


def chosen_mask(logits_OCG: Tensor, candidates_CM: Tensor) -> Tensor:
    """[O, I], bool: the candidate with the highest logit of each block, S[argmax pi] (MaskLLM)."""
    return candidates_CM[logits_OCG.argmax(-2)].flatten(-2)


def kept_counts(mask_OI: Tensor, pattern: Pattern) -> Tensor:
    """[O, G]: how many weights of each block a mask keeps."""
    return mask_OI.unflatten(-1, (-1, pattern.group)).sum(-1)


def pack(mask: Tensor) -> Tensor:
    """A mask as bits, 8 a byte, the first one in the highest bit; the last byte is filled up with zeros."""
    return torch.from_numpy(np.packbits(mask.flatten().cpu().numpy()))


def unpack_bits(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """The mask of `shape` that `pack` made into bits, uint8, on their device."""
    places = torch.arange(7, -1, -1, device=bits.device, dtype=torch.uint8)
    flat = ((bits[:, None] >> places) & 1).flatten()[: math.prod(shape)]
    return flat.bool().reshape(*shape)


def bytes_of(count: int) -> int:
    """Bytes that `pack` makes of a mask of `count` numbers."""
    return -(-count // 8)


# ---------------------------------------------------------- learned masks (MaskLLM)


def linear_schedule(ends: Sequence[float], step: int, steps: int) -> float:
    """The value at `step` of `steps` on the line between two values (MaskLLM section 4.3)."""
    start, end = ends
    return start + (end - start) * min(1.0, step / steps) if steps else start


def toward_prior(
    logits_OCG: Tensor, mask_OI: Tensor, candidates_CM: Tensor, strength: float, std: Tensor | float
) -> Tensor:
    """Logits raised where a candidate resembles a known mask (MaskLLM equations 9 and 10).

    pi' = pi + std(pi) x strength x sim, sim = <M0, S_i> less its mean over candidates, N^2 / M.

    Args:
        std: standard deviation of the logits of the whole weight, of which these may be some rows.
    """
    keep, group = int(candidates_CM[0].sum()), candidates_CM.shape[1]
    similarity = _by_place(mask_OI.to(logits_OCG.dtype), candidates_CM) - keep**2 / group
    return logits_OCG + std * strength * similarity


def choice(logits_OCG: Tensor, uniform_OCG: Tensor, scale: float, temperature: float) -> Tensor:
    """y = softmax((scale x pi + g) / temperature) over candidates (MaskLLM equations 5 to 7).

    Args:
        uniform_OCG: u from [0, 1) in fp32; g = -log(-log u). Overwritten.
    """
    # The smallest and the largest number that 24 random bits cannot make are 2^-25 from their neighbours.
    noise = uniform_OCG.clamp_(2.0**-25, 1 - 2.0**-24).log_().neg_().log_()
    return torch.softmax(torch.sub(logits_OCG.float().mul(scale), noise).div_(temperature), dim=-2)


def one_hot(y_OCG: Tensor) -> Tensor:
    """1 at the largest of each block, 0 elsewhere."""
    return torch.zeros_like(y_OCG).scatter_(-2, y_OCG.argmax(-2, keepdim=True), 1.0)


def soft_mask(y_OCG: Tensor, candidates_CM: Tensor) -> Tensor:
    """y S as [O, I]; each block sums to N."""
    by_place_OMG = candidates_CM.to(y_OCG.dtype).T @ y_OCG
    return by_place_OMG.transpose(-1, -2).flatten(-2)


def choice_gradient(
    y_OCG: Tensor, mask_grad_OI: Tensor, candidates_CM: Tensor, scale: float, temperature: float
) -> Tensor:
    """The gradient of the logits from that of the soft mask: that of a softmax, times scale / temperature."""
    grad_y = _by_place(mask_grad_OI, candidates_CM)
    inner = (y_OCG * grad_y).sum(-2, keepdim=True)
    return grad_y.sub_(inner).mul_(y_OCG).mul_(scale / temperature)


def _by_place(values_OI: Tensor, candidates_CM: Tensor) -> Tensor:
    """Sums of values over the places that each candidate keeps, [O, C, G]."""
    blocks_OMG = values_OI.unflatten(-1, (-1, candidates_CM.shape[1])).transpose(-1, -2)
    return candidates_CM.to(values_OI.dtype) @ blocks_OMG
