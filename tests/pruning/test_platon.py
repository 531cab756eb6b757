"""PLATON's averages against a loop over scalars, and the schedules that close dimensions."""

import pytest
import torch

from llmshearing.pruning import platon


def test_averages_equal_a_loop_over_scalars():
    generator = torch.Generator().manual_seed(0)
    weights, gradients = torch.randn(2, 20, 3, 4, generator=generator)
    smoothed, uncertainty = torch.zeros(3, 4), torch.zeros(3, 4)
    for weight, gradient in zip(weights, gradients, strict=True):
        platon.smooth(smoothed, uncertainty, platon.sensitivity(weight, gradient), 0.85, 0.95)
    for i in range(3):
        for j in range(4):
            mean = spread = 0.0
            for weight, gradient in zip(weights, gradients, strict=True):
                now = abs(float(weight[i, j]) * float(gradient[i, j]))
                mean = 0.85 * mean + 0.15 * now
                spread = 0.95 * spread + 0.05 * abs(now - mean)
            assert smoothed[i, j].item() == pytest.approx(mean, rel=1e-5)
            assert uncertainty[i, j].item() == pytest.approx(spread, rel=1e-5)


def test_progress_begins_after_the_warm_up_and_is_complete_before_the_final_steps():
    assert [platon.progress(done, 20, 4, 6) for done in (0, 4, 9, 14, 17, 20)] == [0, 0, 0.5, 1, 1, 1]


@pytest.mark.parametrize(("warm", "final"), [(15, 15), (20, 0), (0, 20), (40, 0)])
def test_progress_is_complete_with_the_last_step_even_without_room(warm, final):
    parts = [platon.progress(done, 20, warm, final) for done in range(21)]
    assert parts == sorted(parts)
    assert parts[-1] == 1


@pytest.mark.parametrize("schedule", ["cubic", "exponential"])
def test_schedules_fall_from_all_to_exactly_those_that_stay(schedule):
    for size, kept in ((100, 37), (8, 1), (11008, 5504), (7, 6)):
        counts = [platon.still_open(schedule, size, kept, part / 50) for part in range(51)]
        assert (counts[0], counts[-1]) == (size, kept)
        assert counts == sorted(counts, reverse=True)
    assert platon.still_open("cubic", 100, 20, 0.5) == 30
    assert platon.still_open("exponential", 100, 25, 0.5) == 50


def test_the_highest_scores_of_each_row_stay_open_of_equal_ones_the_first():
    scores = torch.tensor([[1.0, 3.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    assert platon.highest(scores, 2).tolist() == [[0, 1, 0, 1], [1, 1, 0, 0]]
