"""Magnitude, Wanda and SparseGPT against their definitions in fp64."""

import pytest
import torch

from llmshearing.pruning import nm_scores, patterns
from llmshearing.pruning.patterns import Pattern

PATTERNS = [Pattern(2, 4), Pattern(1, 4), Pattern(4, 8)]


def layer(
    rows: int = 24, inputs: int = 160, tokens: int = 400, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight [O, I] in fp32 and correlated inputs [N, I] in fp64, of which one is always 0."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64) / inputs**0.5
    x = torch.randn(tokens, inputs, generator=generator, dtype=torch.float64) @ (mixing + torch.eye(inputs))
    x = x * torch.rand(inputs, generator=generator, dtype=torch.float64).add(0.1)
    x[:, 7] = 0
    return torch.randn(rows, inputs, generator=generator), x


def sparsegpt_by_definition(weight, moment, pattern):
    """One row at a time, without blocks of columns: remove, then compensate with the inverse that remains.

    The inverse of H over the columns from i on is what Gaussian elimination leaves of H^-1; its first row
    over its first diagonal entry is the optimal change of the others (optimal brain surgeon).
    """
    moment = moment.clone()
    diagonal = moment.diagonal()
    weight = weight.double().clone()
    dead = diagonal == 0
    diagonal[dead] = 1
    weight[:, dead] = 0
    moment += 0.01 * diagonal.mean() * torch.eye(len(moment), dtype=torch.float64)
    inverse = torch.linalg.inv(moment)
    mask = torch.ones_like(weight, dtype=torch.bool)
    remaining, pivots = inverse.clone(), []
    for i in range(len(moment)):  # the pivots U_ii^2 of elimination, known before any weight changes
        pivots.append(remaining[i, i].clone())
        remaining = remaining - remaining[:, i : i + 1] @ remaining[i : i + 1] / remaining[i, i]
        remaining[i], remaining[:, i] = 0, 0
    pivots = torch.stack(pivots)
    for i in range(len(moment)):
        if i % pattern.group == 0:
            block = slice(i, i + pattern.group)
            scores = weight[:, block] ** 2 / pivots[block]
            for row in range(len(weight)):
                lowest = scores[row].argsort(stable=True)[: pattern.group - pattern.keep]
                mask[row, i + lowest] = False
        change = torch.where(mask[:, i], 0.0, weight[:, i])[:, None] / inverse[i, i]
        weight = weight - change @ inverse[i : i + 1]
        weight[~mask[:, i], i] = 0
        inverse = inverse - inverse[:, i : i + 1] @ inverse[i : i + 1] / inverse[i, i]
        inverse[i], inverse[:, i] = 0, 0
    return weight, mask


def second_moment(x):
    return 2 * x.T @ x / 4  # of 4 sequences


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_sparsegpt_is_its_definition(pattern) -> None:
    """160 inputs: a block of 128 columns and a smaller one."""
    weight, x = layer()
    expected, mask = sparsegpt_by_definition(weight, second_moment(x), pattern)
    factor = nm_scores.inverse_factor(second_moment(x).float())
    found, found_mask = nm_scores.sparsegpt(weight, factor, pattern)
    assert torch.equal(found_mask, mask)
    assert (found.double() - expected).abs().max() < 1e-4
    assert not found[~mask].any()


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_sparsegpt_without_update_is_the_static_score(pattern) -> None:
    weight, x = layer()
    factor = nm_scores.inverse_factor(second_moment(x).float())
    found, mask = nm_scores.prune(weight, "sparsegpt", pattern, factor)
    moment = second_moment(x)
    moment.diagonal()[7] = 1
    moment += 0.01 * moment.diagonal().mean() * torch.eye(len(moment), dtype=torch.float64)
    upper = torch.linalg.cholesky(torch.linalg.inv(moment), upper=True)
    scores = weight.double() ** 2 / upper.diagonal() ** 2
    scores[:, 7] = 0
    assert torch.equal(mask, patterns.top_mask(scores, pattern))
    assert torch.equal(found[mask], weight[mask])


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_wanda_is_its_definition(pattern) -> None:
    weight, x = layer()
    found, mask = nm_scores.prune(weight, "wanda", pattern, x.square().sum(0).float())
    scores = weight.double().abs() * x.norm(dim=0)
    assert torch.equal(mask, patterns.top_mask(scores, pattern))
    assert torch.equal(found, torch.where(mask, weight, 0.0))


def test_wanda_with_equal_norms_is_magnitude() -> None:
    weight, _ = layer()
    wanda = nm_scores.prune(weight, "wanda", PATTERNS[0], torch.full((160,), 3.0))
    magnitude = nm_scores.prune(weight, "magnitude", PATTERNS[0], None)
    assert all(map(torch.equal, wanda, magnitude))


def test_updating_weights_lowers_the_error_of_the_output() -> None:
    weight, x = layer()
    factor = nm_scores.inverse_factor(second_moment(x).float())
    dense = x @ weight.double().T

    def error(pruned):
        return float((x @ pruned.double().T - dense).norm())

    ordered = [
        error(nm_scores.prune(weight, "sparsegpt", PATTERNS[0], factor, update=True)[0]),
        error(nm_scores.prune(weight, "wanda", PATTERNS[0], x.square().sum(0).float())[0]),
        error(nm_scores.prune(weight, "magnitude", PATTERNS[0], None)[0]),
    ]
    assert ordered == sorted(ordered)


def test_inputs_that_are_not_finite_are_rejected() -> None:
    moment = torch.eye(8)
    moment[2, 3] = moment[3, 2] = float("nan")
    with pytest.raises(ValueError, match="not positive definite"):
        nm_scores.inverse_factor(moment)
