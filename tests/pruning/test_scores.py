"""Scores against definitions written out, and what stays by them."""

import itertools

import pytest
import torch

from llmshearing.pruning import scores as pure
from llmshearing.pruning.cut import cut
from llmshearing.pruning.score_file import fingerprint
from llmshearing.shapes.key_map import PREFIX
from llmshearing.shapes.units import KINDS, drive, kept_size, rows
from twins import TWO_A_FAMILY, plain_model


def source_of(name):
    model = plain_model(name)
    return dict(model.state_dict()), model.model.arch


@pytest.mark.parametrize("name", TWO_A_FAMILY)
def test_the_magnitude_of_a_unit_is_that_of_all_that_goes_with_it(name):
    """Closing one unit takes out exactly the weights whose magnitudes its score sums."""
    weights, arch = source_of(name)
    scores = pure.magnitude([weights], arch)
    assert set(scores) == set(pure.kinds_of(arch))
    total = sum(float(weight.abs().sum()) for weight in weights.values())
    closed = {"hidden": (3,), "layer": (1,)}
    for kind in scores:
        if kind == "hidden" and arch.norm_offset:
            continue  # Gemma's embedding is then multiplied by another number, which the cut makes up for
        gates = torch.ones(KINDS[kind].shape(arch))
        unit = closed.get(kind, (slice(None), 1))  # of every layer, which HF models need
        if kind == "head" and arch.group_size > 1:
            unit = (slice(None), slice(1, None, arch.group_size))  # one of every group
        gates[unit] = 0
        left, _ = cut(weights, drive({kind: gates}), arch)
        gone = total - sum(float(weight.abs().sum()) for weight in left.values())
        assert gone == pytest.approx(float(scores[kind][unit].sum()), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "seed"), [*itertools.product(["llama", "llama grouped", "gpt_neox"], range(5))]
)
def test_the_highest_of_each_row_stay_and_the_cut_has_the_target_s_shape(name, seed):
    weights, arch = source_of(name)
    heads = {"n_heads": 2, "n_kv_heads": 2 if name != "llama grouped" else 1}
    target = arch.resized(d_model=16, n_layers=1, intermediate_size=24, **heads)
    scores = pure.random(arch, seed)
    kept = pure.kept_units(scores, arch, target)
    for kind, gates in kept.items():
        by_row, score = rows(kind, gates, arch), rows(kind, scores[kind], arch)
        assert (by_row.sum(-1) == kept_size(kind, arch, target)).all()
        lowest_kept = score.masked_fill(by_row == 0, 2).amin(-1)
        highest_gone = score.masked_fill(by_row == 1, -1).amax(-1)
        assert (lowest_kept > highest_gone).all()
    assert cut(weights, drive(kept), arch)[1] == target


def test_of_equal_scores_the_first_stay_and_others_than_numbers_are_refused():
    arch = source_of("llama")[1]
    target = arch.resized(intermediate_size=24)
    scores = {"intermediate": torch.zeros(arch.n_layers, arch.intermediate_size)}
    assert pure.kept_units(scores, arch, target)["intermediate"][0].nonzero().flatten().tolist() == [
        *range(24)
    ]
    with pytest.raises(ValueError, match="no scores of hidden, and d_model shrinks"):
        pure.kept_units(scores, arch, target.resized(d_model=16))
    scores["intermediate"][1, 5] = torch.nan
    with pytest.raises(ValueError, match="scores of intermediate are not all finite"):
        pure.kept_units(scores, arch, target)


def test_random_scores_are_those_of_their_seed():
    arch = source_of("llama")[1]
    first, again, other = (pure.random(arch, seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[kind], again[kind]) for kind in first)
    assert not any(torch.equal(first[kind], other[kind]) for kind in first)


def test_ranks_go_from_0_to_1_in_the_order_of_scores():
    assert pure.ranks(torch.tensor([[3.0, 1.0, 2.0], [5.0, 5.0, 0.0]])).tolist() == [[1, 0, 0.5], [0.5, 1, 0]]
    assert pure.ranks(torch.tensor([7.0])).tolist() == [1]


def test_a_fingerprint_changes_with_any_weight_and_not_with_the_order():
    weights, _ = source_of("llama")
    before = fingerprint(weights)
    assert fingerprint(dict(reversed(weights.items()))) == before
    for name in (f"{PREFIX}blocks.1.mlp.up_proj.weight", f"{PREFIX}ln_f.weight"):
        changed = weights | {name: weights[name] * 1.01}
        assert fingerprint(changed) != before
