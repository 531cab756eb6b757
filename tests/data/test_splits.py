"""Budgets and cuts: nothing is in two splits, copies stay together, shortages are told in numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmshearing.data.splits import BINS, SPLITS, cut_bins, document_bin, plan_budgets


def test_copies_share_a_bin_and_seeds_differ():
    assert [document_bin(b"the same text", seed) for seed in (1, 2)] == [56380, 59392]  # on any machine
    bins = [document_bin(str(i).encode(), 1) for i in range(20_000)]
    counts = np.bincount(np.array(bins) * 16 // BINS, minlength=16)
    assert ((counts - 1250) ** 2 / 1250).sum() < 37.7  # chi-square, 15 degrees of freedom, p = 0.001
    assert bins != [document_bin(str(i).encode(), 2) for i in range(20_000)]


def test_budgets_where_there_is_enough():
    budgets, warnings = plan_budgets({"cc": 8000, "wiki": 2000}, 100, 1000, None)
    assert warnings == []
    assert budgets == {
        "cc": {"eval": 100, "for_prune": 800, "for_ft": None},
        "wiki": {"eval": 100, "for_prune": 200, "for_ft": None},
    }


def test_budgets_follow_the_proportion():
    budgets, _ = plan_budgets({"cc": 8000, "wiki": 2000}, 0, 1000, 2000, {"cc": 0.6, "wiki": 0.4})
    assert budgets == {"cc": {"for_prune": 600, "for_ft": 1200}, "wiki": {"for_prune": 400, "for_ft": 800}}


def test_a_shortage_is_shared_and_reported():
    budgets, warnings = plan_budgets({"wiki": 1000}, 500, 3000, 6000, {"wiki": 1.0})
    assert budgets["wiki"] == {"eval": 100, "for_prune": 300, "for_ft": 600}
    assert warnings == [
        "domain wiki: eval gets 100 tokens, not 500: no more than 10% of the 1,000 that there are",
        "domain wiki: for_prune gets 300 tokens, not 3,000: 900 are there for it and for_ft (6,000)",
    ]
    budgets, warnings = plan_budgets({"wiki": 1000}, 0, 3000, None)
    assert budgets["wiki"] == {"for_prune": 500, "for_ft": None}
    assert warnings == [
        "domain wiki: for_prune gets 500 tokens, not 3,000: 1,000 are there for it and for_ft"
    ]
    budgets, warnings = plan_budgets({"wiki": 1000}, 101, 700, None)  # each just too much
    assert budgets["wiki"] == {"eval": 100, "for_prune": 450, "for_ft": None}
    assert [warning.split(":")[1] for warning in warnings] == [
        " eval gets 100 tokens, not 101",
        " for_prune gets 450 tokens, not 700",
    ]
    assert plan_budgets({"wiki": 1000}, 100, 450, 450)[1] == []


@given(seed=st.integers(0, 1000), shares=st.lists(st.floats(0, 0.4), min_size=2, max_size=2))
@settings(max_examples=50, deadline=None)
def test_cuts_are_disjoint_and_hold_what_they_should(seed, shares):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 200, 500)
    histogram = np.bincount(rng.integers(0, BINS, 500), lengths, BINS).astype(np.int64)
    total = int(histogram.sum())
    budgets = {"eval": int(total * shares[0]), "for_prune": int(total * shares[1]), "for_ft": None}
    cuts = [cut_bins(histogram, budgets, 10)[split] for split in SPLITS]
    assert cuts[0].first_bin == 0
    assert cuts[-1].end_bin == BINS
    assert [cut.end_bin for cut in cuts[:-1]] == [cut.first_bin for cut in cuts[1:]]
    for cut, budget in zip(cuts[:-1], list(budgets.values())[:-1], strict=True):
        assert histogram[cut.first_bin : cut.end_bin].sum() >= budget
        assert histogram[cut.first_bin : cut.end_bin - 1].sum() < max(budget, 1)
        assert cut.max_sequences == budget // 10
    assert cuts[-1].max_sequences is None


@pytest.mark.parametrize("budget", [10, 10**9])
def test_a_budget_beyond_the_data_takes_what_there_is(budget):
    histogram = np.zeros(BINS, np.int64)
    histogram[[3, BINS - 1]] = 10
    cut = cut_bins(histogram, {"for_prune": budget}, 5)["for_prune"]
    assert cut.end_bin == (4 if budget == 10 else BINS)
