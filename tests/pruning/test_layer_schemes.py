"""Which layers LayerCHOP keeps, in which order the others go, and when."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmshearing.config import LayerChopConfig
from llmshearing.pruning.layer_schemes import (
    chosen,
    find_problems,
    last_cut,
    layers_to_keep,
    removal_order,
    removed_by,
)

REMOVED_OF_24 = {  # of 24 layers, 12 of them removed
    "input": [*range(1, 13)],
    "output": [*range(11, 23)],
    "middle": [*range(6, 18)],
    "both": [*range(1, 7), *range(17, 23)],
    "max_gap": [1, 3, 5, 7, 9, 11, 12, 14, 16, 18, 20, 22],
}


@pytest.mark.parametrize(("scheme", "removed"), REMOVED_OF_24.items())
def test_twelve_of_24_layers(scheme, removed):
    assert removal_order(layers_to_keep(scheme, 24, 12), 24) == removed


@given(st.sampled_from([*REMOVED_OF_24, "importance"]), st.integers(2, 40), st.data())
def test_first_and_last_layer_stay_and_the_count_is_right(scheme, layers, data):
    kept = data.draw(st.integers(2, layers))
    importance = data.draw(st.lists(st.integers(0, 3), min_size=layers, max_size=layers))
    keep = layers_to_keep(scheme, layers, kept, importance)
    assert len(keep) == kept
    assert keep == sorted(set(keep))
    assert (keep[0], keep[-1]) == (0, layers - 1)


@pytest.mark.parametrize(("removed", "gone"), [(1, [1]), (2, [1, 3]), (3, [1, 2, 3])])
def test_an_odd_number_takes_one_more_at_the_input(removed, gone):
    assert removal_order(layers_to_keep("both", 5, 5 - removed), 5) == gone


def test_importance_keeps_what_changes_the_stream_most():
    importance = [0.0, 0.3, 0.9, 0.1, 0.3, 0.0]
    assert layers_to_keep("importance", 6, 4, importance) == [0, 1, 2, 5]
    assert removal_order([0, 2, 5], 6, "importance", importance) == [3, 1, 4]
    assert removal_order([0, 2, 5], 6, "descending") == [4, 3, 1]


def test_layers_go_at_once_or_some_at_each_interval():
    def closed(steps, **settings):
        settings = LayerChopConfig(warm_steps="3ba", **settings)
        return [removed_by(settings, 5, step) for step in range(steps)]

    assert closed(5) == [0, 0, 0, 5, 5]
    assert closed(13, layers_per_cut=2, interval="4ba") == [0, 0, 0, 2, 2, 2, 2, 4, 4, 4, 4, 5, 5]
    assert closed(5, layers_per_cut=2, interval="0ba") == [0, 0, 0, 5, 5]


@pytest.mark.parametrize(
    ("each", "interval", "before"),
    [(None, "1ba", ["3ba"]), (2, "4ba", ["3ba", "4ba", "4ba"]), (2, "40tok", ["3ba", "40tok", "40tok"])],
)
def test_the_last_cut_comes_after_the_warm_up_and_all_intervals(each, interval, before):
    assert last_cut(LayerChopConfig(warm_steps="3ba", layers_per_cut=each, interval=interval), 5) == before


def test_a_list_of_layers_may_be_in_any_order():
    assert chosen(LayerChopConfig(keep=[5, 0, 2]), 6) == ([0, 2, 5], [1, 3, 4])


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, "Neither model.layerchop.n_layers nor model.layerchop.keep"),
        ({"n_layers": 6}, "6 of 6 layers: nothing would be removed"),
        ({"n_layers": 9}, "9 of 6 layers"),
        ({"n_layers": 1}, "n_layers is 1; the first and the last layer always stay"),
        ({"keep": [1, 2, 5]}, "leaves out layer 0, the first"),
        ({"keep": [0, 2, 3]}, "leaves out layer 5, the last"),
        ({"keep": [0, 6]}, "has 6; the 6 layers are counted from 0 to 5"),
        ({"keep": [0, -1]}, "has -1;"),
        ({"keep": [*range(6)]}, "lists all 6 layers"),
        ({"keep": [0, 5], "n_layers": 3}, "n_layers is 3, but model.layerchop.keep lists 2"),
        ({"keep": [0, 5], "scheme": "input"}, "leave model.layerchop.scheme out"),
        ({"n_layers": 3, "scheme": "importance"}, "give model.layerchop.scores"),
        ({"n_layers": 3, "order": "importance"}, "order is importance, which is read from a file"),
        ({"n_layers": 3, "scores": "x.safetensors"}, "nothing here goes by importance"),
    ],
)
def test_impossible_settings_are_rejected_with_what_to_change(settings, problem):
    assert problem in "\n".join(find_problems(LayerChopConfig(**settings), 6))


def test_possible_settings_have_no_problems():
    for settings in ({"n_layers": 2}, {"n_layers": 5, "scheme": "both"}, {"keep": [0, 5]}):
        assert find_problems(LayerChopConfig(**settings), 6) == []
