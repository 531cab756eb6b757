"""The hard-concrete distribution against its formula, published oracles and invariants."""

import math

import pytest
import torch

from llmshearing.pruning import hard_concrete as hc


@pytest.mark.parametrize(("log_alpha", "expected"), [(4.605, 0.9980), (0.0, 0.8318), (-4.605, 0.0471)])
def test_keep_probability_oracles(log_alpha, expected):
    assert hc.keep_probability(torch.tensor(log_alpha)).item() == pytest.approx(expected, abs=5e-5)


def test_keep_probability_is_the_share_of_open_gates():
    for log_alpha in (-3.0, -1.0, 0.5, 2.0):
        noise = torch.rand(200_000, generator=torch.Generator().manual_seed(1))
        gates = hc.sample(torch.full((200_000,), log_alpha), noise)
        share = (gates > 0).double().mean().item()
        assert share == pytest.approx(hc.keep_probability(torch.tensor(log_alpha)).item(), abs=4e-3)


def test_sample_follows_the_formula():
    log_alpha, u = 0.7, 0.3
    s = 1 / (1 + math.exp(-(math.log(u / (1 - u)) + log_alpha) / (2 / 3)))
    noise = (u - 1e-6) / (1 - 2e-6)
    z = hc.sample(torch.tensor(log_alpha, dtype=torch.float64), torch.tensor(noise, dtype=torch.float64))
    assert z.item() == pytest.approx(min(1.0, max(0.0, s * 1.2 - 0.1)), abs=1e-12)


def test_sample_reaches_both_ends_and_stays_finite_at_extreme_noise():
    z = hc.sample(torch.tensor([-4.6, 4.6, 0.0]), torch.tensor([0.0, 1 - 2**-24, 0.5]))
    assert z[0] == 0
    assert z[1] == 1
    assert torch.isfinite(z).all()


def test_keep_probability_rises_with_log_alpha():
    grid = torch.linspace(-4.6, 4.6, 200)
    assert (hc.keep_probability(grid).diff() > 0).all()


@pytest.mark.parametrize("zeros", [0, 1, 3, 5])
def test_deterministic_closes_the_lowest_and_leaves_the_rest_soft(zeros):
    log_alpha = torch.tensor([[0.1, 3.0, -2.0, 4.605, 1.0], [2.0, -1.0, 0.0, 1.0, 3.0]])
    z = hc.deterministic(log_alpha, zeros)
    for row, gates in zip(log_alpha, z, strict=True):
        lowest = set(row.argsort()[:zeros].tolist())
        assert {i for i, gate in enumerate(gates.tolist()) if gate == 0} == lowest
    assert hc.deterministic(torch.tensor([4.605]), 0).item() == pytest.approx(0.996, abs=1e-3)


def test_deterministic_takes_a_number_for_each_row_and_breaks_ties_by_index():
    z = hc.deterministic(torch.full((2, 4), 4.605), torch.tensor([1, 3]))
    assert (z != 0).tolist() == [[False, True, True, True], [False, False, False, True]]


def test_expected_zeros_counts_rows():
    log_alpha = torch.tensor([[-4.605, -4.605, 4.605, 4.605], [4.605] * 4])
    assert hc.expected_zeros(log_alpha).tolist() == [2, 0]


def test_gradient_flows_to_log_alpha():
    log_alpha = torch.zeros(1000, requires_grad=True)
    hc.sample(log_alpha, torch.rand(1000, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert log_alpha.grad is not None
    assert (log_alpha.grad >= 0).all()
    assert log_alpha.grad.sum() > 0
