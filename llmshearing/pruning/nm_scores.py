"""Which weights of each block stay, decided once: magnitude, Wanda, SparseGPT. Pure functions of tensors.

O rows of a weight, I columns (its inputs). The words of the papers: W the weight, X its inputs over
calibration tokens, H = 2 X X^T their second moment.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from llmshearing.pruning.patterns import Pattern, top_mask

DAMPING = 0.01  # of the mean of H's diagonal (SparseGPT's released code)
COLUMNS = 128  # compensated at a time there


def magnitude_scores(weight_OI: Tensor) -> Tensor:
    """|W|."""
    return weight_OI.float().abs()


def wanda_scores(weight_OI: Tensor, norms_I: Tensor) -> Tensor:
    """|W_ij| x ||X_j||_2 (Wanda, arXiv 2306.11695).

    Args:
        norms_I: sums of squares of every input over calibration tokens, to any common factor.
    """
    return weight_OI.float().abs() * norms_I.float().sqrt()


class Factor(NamedTuple):
    """What SparseGPT reads of a weight's inputs.

    Attributes:
        upper: U [I, I] in fp64, the upper Cholesky factor of the damped H^-1.
        dead: [I], bool: the inputs that are always 0.
    """

    upper: Tensor
    dead: Tensor


def inverse_factor(second_moment_II: Tensor) -> Factor:
    """The factor of H, the mean over calibration sequences of 2 X X^T.

    Raises:
        ValueError: when H is not positive definite after damping.
    """
    moment = second_moment_II.double().clone()
    diagonal = moment.diagonal()
    dead = diagonal == 0
    diagonal[dead] = 1
    diagonal += DAMPING * diagonal.mean()
    lower, failed = torch.linalg.cholesky_ex(moment)
    if int(failed):
        raise ValueError(
            "the second moment of the inputs is not positive definite, because they are not finite or range "
            "too widely"
        )
    inverse = torch.cholesky_inverse(lower)
    return Factor(torch.linalg.cholesky(inverse, upper=True), dead)


def sparsegpt_scores(weight_OI: Tensor, factor: Factor) -> Tensor:
    """w^2 / U_ii^2: the error that removing a weight makes when the others to its right make up for it.

    The mask alone, without their update, is what MaskLLM starts from by default.
    """
    scores = weight_OI.double() / factor.upper.diagonal()
    scores[:, factor.dead] = 0
    return scores.square_()


def sparsegpt(weight_OI: Tensor, factor: Factor, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """Prune column by column; what remains of a row makes up for what is removed (arXiv 2301.00774).

    At the first column of a block its weights are ranked by w^2 / U_ii^2 as they are by then. A removed
    weight's error e = w / U_ii is subtracted from the columns to its right, times U's row.

    Returns:
        The new weight in fp32, 0 where closed, and the mask [O, I].
    """
    upper = factor.upper.float()
    weight = weight_OI.float().clone()
    weight[:, factor.dead] = 0
    mask = torch.ones_like(weight, dtype=torch.bool)
    width = max(1, COLUMNS // pattern.group) * pattern.group
    for begin in range(0, weight.shape[1], width):
        here = slice(begin, min(begin + width, weight.shape[1]))
        part, own = weight[:, here], upper[here, here]
        errors = torch.zeros_like(part)
        for column in range(part.shape[1]):
            if column % pattern.group == 0:
                block = slice(column, column + pattern.group)
                scores = (part[:, block] / own.diagonal()[block]).square()
                mask[:, begin + column : begin + column + pattern.group] = top_mask(scores, pattern)
            closed = ~mask[:, begin + column]
            error = torch.where(closed, part[:, column], 0.0) / own[column, column]
            part[:, column:] -= error[:, None] * own[column, column:]
            part[closed, column] = 0
            errors[:, column] = error
        weight[:, here.stop :] -= errors @ upper[here, here.stop :]
    return weight, mask


def prune(
    weight_OI: Tensor, method: str, pattern: Pattern, inputs: Tensor | Factor | None, update: bool = False
) -> tuple[Tensor, Tensor]:
    """The weight under its mask by `method`, in its type, and the mask.

    Without `update` what stays of the weight equals the source's to the bit.

    Args:
        inputs: what `INPUTS` says that the method reads of the weight's inputs.
        update: let what stays of the weight make up for what is removed (SparseGPT).
    """
    if method == "sparsegpt":
        assert isinstance(inputs, Factor)
        if update:
            new, mask = sparsegpt(weight_OI, inputs, pattern)
            return new.to(weight_OI.dtype), mask
        scores = sparsegpt_scores(weight_OI, inputs)
    elif method == "wanda":
        assert isinstance(inputs, Tensor)
        scores = wanda_scores(weight_OI, inputs)
    else:
        scores = magnitude_scores(weight_OI)
    mask = top_mask(scores, pattern)
    return weight_OI.masked_fill(~mask, 0), mask


NORMS, MOMENTS = "norms", "moments"
INPUTS: dict[str, str | None] = {"magnitude": None, "wanda": NORMS, "sparsegpt": MOMENTS}
"""The methods, and what each reads of a weight's inputs: nothing, sums of squares, or second moments."""
