"""The rules for domain weights against hand-made numbers, and their invariants."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmshearing.callbacks.dynamic_loading_callback import (
    DynamicLoadingCallback,
    bandit_weights,
    cap_weights,
    doremi_weights,
)
from tests.callbacks.loading import START, callback


def test_doremi_equals_the_formula():
    """w = (.5, .5), excess (ln 2, 0): 2 : 1 before smoothing by .1."""
    got = callback(smoothing=0.1).update_proportion(START, [2.0 + math.log(2), 3.0])
    assert got == pytest.approx([0.9 * 2 / 3 + 0.05, 0.9 / 3 + 0.05])


def test_bandit_equals_the_formula():
    got = callback(update_type="bandit", smoothing=0.1).update_proportion([0.6, 0.4], [2.5, 3.0])
    first = math.exp(1.1) / (math.exp(1.1) + math.exp(0.4))
    assert got == pytest.approx([0.9 * first + 0.05, 0.9 * (1 - first) + 0.05])


def test_constant_keeps_the_weights():
    assert callback(update_type="constant").update_proportion([0.3, 0.7], [9, 1]) == [0.3, 0.7]


def test_clip_excess_ignores_domains_below_their_reference():
    losses = [1.0, 3.5]
    assert callback(clip_excess=True, smoothing=0).update_proportion(START, losses) == pytest.approx(
        [1 / (1 + math.exp(0.5)), 1 / (1 + math.exp(-0.5))]
    )
    assert callback(smoothing=0).update_proportion(START, losses)[0] < 0.2


def test_no_weight_is_updated_beyond_its_maximum():
    got = callback(smoothing=0, max_weight=0.6).update_proportion(START, [9.0, 3.0])
    assert got == pytest.approx([0.6, 0.4])


def test_step_size_scales_the_excess():
    whole = callback(smoothing=0, step_size=0.5).update_proportion(START, [3.0, 3.0])
    assert whole == pytest.approx(callback(smoothing=0).update_proportion(START, [2.5, 3.0]))


weights_st = st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=8).map(lambda w: np.array(w) / sum(w))


@given(weights=weights_st, shift=st.floats(-5, 5), smoothing=st.floats(0, 1))
@settings(deadline=None)
def test_the_same_excess_everywhere_only_smooths(weights, shift, smoothing):
    got = doremi_weights(weights, np.full(weights.size, shift), 1.0, smoothing)
    assert got == pytest.approx((1 - smoothing) * weights + smoothing / weights.size)


@given(weights=weights_st, seed=st.integers(0, 1000), scale=st.floats(0, 1e4))
@settings(deadline=None)
def test_weights_stay_a_distribution(weights, seed, scale):
    excess = np.random.default_rng(seed).normal(size=weights.size) * scale
    limit = 1 / weights.size + 0.1 * (1 - 1 / weights.size)
    for rule in (doremi_weights, bandit_weights):
        got = rule(weights, excess, 1.0, 1e-4)
        capped = cap_weights(got, limit)
        assert got.sum() == pytest.approx(1)
        assert got.min() >= 0
        assert capped.sum() == pytest.approx(1)
        assert capped.max() <= limit
        assert capped.min() >= got.min()


def test_cap_gives_the_rest_to_the_others_in_proportion():
    assert cap_weights(np.array([0.7, 0.2, 0.1]), 0.4) == pytest.approx([0.4, 0.4, 0.2])
    assert cap_weights(np.array([0.7, 0.25, 0.05]), 0.45) == pytest.approx([0.45, 0.45, 0.1])
    assert cap_weights(np.array([1.0, 0.0, 0.0]), 0.4) == pytest.approx([0.4, 0.3, 0.3])


@pytest.mark.parametrize("update_type", ["doremi", "bandit"])
@pytest.mark.parametrize("max_weight", [None, 0.6])
def test_a_domain_of_weight_0_is_never_used(update_type, max_weight):
    """However far it lags; the others are mixed as if it were not there."""
    settings = {"update_type": update_type, "max_weight": max_weight, "smoothing": 0.1}
    three = DynamicLoadingCallback([2.0, 2.0, 2.0], [0.0, 0.3, 0.7], ["a", "b", "c"], **settings)
    two = DynamicLoadingCallback([2.0, 2.0], [0.3, 0.7], ["b", "c"], **settings)
    weights, others = [0.0, 0.3, 0.7], [0.3, 0.7]
    for losses in ([9.0, 2.5, 2.1], [9.0, 2.0, 4.0]):
        weights = three.update_proportion(weights, losses)
        others = two.update_proportion(others, losses[1:])
        assert weights == [0.0, *others]
    with pytest.raises(
        ValueError, match=r"max_weight is 0.4: expected from 1/2 \(the domains with a weight above 0"
    ):
        DynamicLoadingCallback([2.0, 2.0, 2.0], [0.0, 0.3, 0.7], ["a", "b", "c"], max_weight=0.4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"update_type": "doremy"}, "expected one of doremi, bandit, constant"),
        ({"target_loss": [2.0]}, "target_loss has 1 values, set_names has 2"),
        ({"target_loss": None}, "target_loss has 0 values"),
        ({"smoothing": -0.1}, "smoothing is -0.1"),
        ({"step_size": 0}, "step_size is 0"),
        ({"step_size": math.inf}, "step_size is inf: expected a finite number"),
        ({"target_loss": [2.0, math.nan]}, "target_loss of domain book is nan: expected a finite number"),
        ({"max_weight": 0.4}, r"max_weight is 0.4: expected from 1/2"),
    ],
)
def test_wrong_settings_are_rejected(settings, message):
    with pytest.raises(ValueError, match=message):
        callback(**settings)


def test_a_loss_that_is_not_finite_stops_the_run():
    with pytest.raises(ValueError, match="loss of domain book is nan: the model has diverged"):
        callback().update_proportion(START, [2.0, float("nan")])
