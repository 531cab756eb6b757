"""The stream is a function of (seed, sizes, history of weights), whoever computes which part of it."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmshearing.datasets.mixture import (
    Cursor,
    Mixture,
    Plan,
    draw_domains,
    normalized_weights,
    occurrence,
    permute,
    uniforms,
)

SIZES = [13, 40, 7, 100]
NAMES = ["cc", "github", "book", "wiki"]
WEIGHTS = [0.4, 0.3, 0.1, 0.2]


def make(seed: int = 0, exhausted: str = "repeat", sizes: list[int] = SIZES) -> Mixture:
    return Mixture(NAMES, sizes, WEIGHTS, seed, exhausted)


def rows(plan: Plan) -> list[tuple[int, int, int]]:
    return list(zip(plan.domain.tolist(), plan.index.tolist(), plan.pass_.tolist(), strict=True))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 100, 4097])
def test_permute_is_a_bijection(size):
    for key in range(20):
        assert sorted(permute(np.arange(size), size, key)) == list(range(size))


def test_permute_depends_on_the_key_and_spreads_evenly():
    """The first element over many keys is uniform: chi-square of 10 cells below its 99.9 % point."""
    keys = np.arange(20_000, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for at in (0, 5, 9):
        counts = np.bincount(permute(np.full(keys.size, at), 10, keys), minlength=10)
        assert ((counts - 2000) ** 2 / 2000).sum() < 27.9


def test_permute_shuffles_neighbours_apart():
    """In a random order a neighbour stays a neighbour twice in `size` steps, not more."""
    order = permute(np.arange(10_000), 10_000, 7)
    assert (np.abs(np.diff(order)) == 1).sum() < 12


def test_uniforms_depend_on_their_own_number_only():
    whole = uniforms(11, 0, 1000)
    for first in (0, 1, 2, 3, 4, 5, 501):
        assert np.array_equal(uniforms(11, first, 37), whole[first : first + 37])
    assert not np.array_equal(uniforms(12, 0, 1000), whole)
    assert 0 <= whole.min() < 0.01
    assert 0.99 < whole.max() < 1


def test_occurrence_counts_what_came_before():
    assert occurrence(np.array([2, 0, 2, 2, 1, 0])).tolist() == [0, 0, 1, 2, 0, 1]


@given(seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_draws_follow_the_weights(seed):
    """Chi-square with 3 degrees of freedom below 30 (p = 1e-6)."""
    domain = draw_domains(np.array(WEIGHTS), uniforms(seed, seed % 1000, 20_000))
    expected = 20_000 * np.array(WEIGHTS)
    assert ((np.bincount(domain, minlength=4) - expected) ** 2 / expected).sum() < 30


def test_a_weight_of_zero_is_never_drawn():
    u = np.array([0.0, 0.3, 0.5, 1 - 2**-53])
    assert draw_domains(np.array([0.0, 0.5, 0.0, 0.5, 0.0]), u).tolist() == [1, 1, 3, 3]


@given(
    seed=st.integers(0, 2**40),
    batch=st.integers(1, 50),
    updates=st.lists(st.integers(0, 20), max_size=4),
    cuts=st.lists(st.integers(0, 400), max_size=4),
    exhausted=st.sampled_from(["repeat", "renormalize", "stop"]),
)
@settings(max_examples=150, deadline=None)
def test_any_cut_and_resume_gives_the_same_continuation(seed, batch, updates, cuts, exhausted):
    """Batches of any size, updates at batch ends, interrupted anywhere, restored through JSON."""
    changes = {batch * at: np.random.default_rng(at).dirichlet(np.ones(4)).tolist() for at in updates}
    whole = make(seed, exhausted)
    for sample in sorted(changes):
        whole.set_weights(sample, changes[sample])
    expected = rows(whole.plan(whole.start(), 400)[0])

    mixture, cursor, got = make(seed, exhausted), make(seed).start(), []
    stops = sorted({*changes, *cuts, 400})
    for stop in [s for s in stops if s <= 400]:
        plan, cursor = mixture.plan(cursor, stop - cursor.sample)
        got += rows(plan)
        if cursor.sample < stop:
            break
        if stop in changes:
            mixture.set_weights(stop, changes[stop])
        if stop in cuts:
            state = json.loads(json.dumps(mixture.state_dict(cursor)))
            mixture = make(seed, exhausted)
            cursor = mixture.load_state_dict(state)
    assert got == expected


@given(seed=st.integers(0, 2**40), exhausted=st.sampled_from(["repeat", "renormalize", "stop"]))
@settings(max_examples=50, deadline=None)
def test_no_sample_twice_within_a_pass_of_its_domain(seed, exhausted):
    mixture = make(seed, exhausted)
    plan, cursor = mixture.plan(mixture.start(), 600)
    drawn = rows(plan)
    assert len(set(drawn)) == len(drawn) == cursor.sample
    for domain, size in enumerate(SIZES):
        complete = cursor.counts[domain] // size
        for pass_ in range(complete):
            assert sorted(i for d, i, p in drawn if (d, p) == (domain, pass_)) == list(range(size))


def test_each_pass_has_its_own_order():
    mixture = Mixture(["only"], [50], [1.0], seed=3)
    index = mixture.plan(mixture.start(), 150)[0].index.reshape(3, 50).tolist()
    assert index[0] != index[1] != index[2] != index[0]


def test_without_shuffle_a_domain_is_read_in_its_own_order():
    mixture = Mixture(["only"], [5], [1.0], seed=3, shuffle=False)
    assert mixture.plan(mixture.start(), 12)[0].index.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]


def test_renormalize_uses_everything_once_and_ends():
    mixture = make(exhausted="renormalize")
    plan, cursor = mixture.plan(mixture.start(), 1000)
    assert cursor.counts.tolist() == SIZES
    assert plan.pass_.max() == 0


@pytest.mark.parametrize("exhausted", ["repeat", "renormalize", "stop"])
def test_planned_one_by_one_or_at_once_is_the_same(exhausted):
    """Also around the sample at which a domain runs out."""
    for seed in range(10):
        mixture = make(seed, exhausted)
        single, cursor = [], mixture.start()
        for _ in range(200):
            plan, cursor = mixture.plan(cursor, 1)
            single += rows(plan)
        assert single == rows(mixture.plan(mixture.start(), 200)[0])


def test_stop_ends_at_the_first_draw_of_a_domain_that_ran_out():
    mixture, forever = make(exhausted="stop"), make()
    plan, cursor = mixture.plan(mixture.start(), 1000)
    endless = forever.plan(forever.start(), 1000)[0]
    assert cursor.sample == int(np.argmax(endless.pass_ > 0))
    assert rows(plan) == rows(endless)[: cursor.sample]


def test_weights_take_effect_at_the_exact_sample():
    mixture = make()
    mixture.set_weights(100, [0, 1, 0, 0])
    mixture.set_weights(150, [0, 0, 0, 1])
    mixture.set_weights(150, [0, 0, 1, 0])  # instead
    assert [since for since, _ in mixture.history] == [0, 100, 150]
    domain = mixture.plan(mixture.start(), 200)[0].domain
    assert np.array_equal(domain[:100], make().plan(make().start(), 100)[0].domain)
    assert set(domain[100:150]) == {1}
    assert set(domain[150:]) == {2}
    single, cursor = [], mixture.start()
    for _ in range(200):
        plan, cursor = mixture.plan(cursor, 1)
        single += plan.domain.tolist()
    assert single == domain.tolist()


def test_advance_goes_where_planning_goes():
    mixture = make(5)
    _, planned = mixture.plan(mixture.start(), 333)
    advanced = mixture.advance(mixture.start(), 333)
    assert planned.sample == advanced.sample
    assert planned.counts.tolist() == advanced.counts.tolist()


def test_state_of_a_long_run_stays_small():
    """48,000 steps with an update every 400 and seven domains: below 64 KB."""
    mixture = Mixture([f"domain{i}" for i in range(7)], [10**8] * 7, [1 / 7] * 7, seed=17)
    for step in range(400, 48_001, 400):
        mixture.set_weights(step * 256, np.random.default_rng(step).dirichlet(np.ones(7)).tolist())
    state = mixture.state_dict(Cursor(48_000 * 256, np.full(7, 10**7)))
    text = json.dumps(state)
    assert len(text) < 64_000
    again = Mixture([f"domain{i}" for i in range(7)], [10**8] * 7, [1 / 7] * 7, seed=17)
    again.load_state_dict(json.loads(text))
    assert again.history == mixture.history  # to the bit


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5, 0.5], "2 values, set_names has 4"),
        ([0.5, 0.5, 0.5, -0.5], "domain wiki is -0.5"),
        ([0.5, float("nan"), 0.5, 0], "domain github is nan"),
        ([0.5, 0.4, 0.05, 0], "sums to 0.95"),
    ],
)
def test_wrong_weights_are_rejected(weights, message):
    with pytest.raises(ValueError, match=message):
        normalized_weights(weights, NAMES)


def test_weights_that_are_rounded_are_scaled_to_sum_to_1():
    assert normalized_weights([0.4, 0.3, 0.1, 0.2005], NAMES).sum() == pytest.approx(1, abs=1e-15)


def test_wrong_settings_are_rejected():
    with pytest.raises(ValueError, match="domain book has no sequences"):
        make(sizes=[1, 1, 0, 1])
    with pytest.raises(ValueError, match="expected one of repeat, stop, renormalize"):
        make(exhausted="again")
    with pytest.raises(ValueError, match="shuffle_seed is -1"):
        make(seed=-1)


def test_a_checkpoint_of_a_different_stream_is_rejected():
    state = make(seed=1).state_dict(make().start())
    with pytest.raises(ValueError, match=r"checkpoint's seed .* is 1, this run's is 2"):
        make(seed=2).load_state_dict(state)
    with pytest.raises(ValueError, match="checkpoint's sizes"):
        make(seed=1, sizes=[13, 40, 7, 99]).load_state_dict(state)
    with pytest.raises(ValueError, match=r"checkpoint's exhausted .* is repeat, this run's is stop"):
        make(seed=1, exhausted="stop").load_state_dict(state)
    with pytest.raises(ValueError, match=r"checkpoint's shuffle .* is True, this run's is False"):
        Mixture(NAMES, SIZES, WEIGHTS, 1, shuffle=False).load_state_dict(state)
