"""Counts and targets of masks against a count by hand."""

import pytest
import torch

from llmshearing.shapes import units as masks
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.reachable import pruning_problems

MHA = Architecture(
    d_model=64,
    n_heads=4,
    n_kv_heads=4,
    head_dim=16,
    n_layers=3,
    intermediate_size=96,
    vocab_size=50,
    max_seq_len=32,
)
GQA = MHA.resized(n_heads=8, n_kv_heads=2, head_dim=8)


def keep(arch, names, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        n: (torch.rand(masks.MASK_KINDS[n].shape(arch), generator=generator) > 0.4).double() for n in names
    }


def count(arch, gates):
    """Parameters that survive binary gates, unit by unit."""
    total = 0.0
    hidden = gates["hidden"].sum() if "hidden" in gates else arch.d_model
    for layer in range(arch.n_layers):
        per_layer = gates["layer"][layer] if "layer" in gates else 1
        attention = gates["head_layer"][layer] if "head_layer" in gates else per_layer
        mlp = gates["mlp"][layer] if "mlp" in gates else per_layer
        for k in range(arch.n_kv_heads):
            group = gates["kv_head"][layer, k] if "kv_head" in gates else 1
            queries = range(k * arch.group_size, (k + 1) * arch.group_size)
            open_queries = sum(gates["head"][layer, q] if "head" in gates else 1 for q in queries)
            if arch.group_size == 1:
                group, open_queries = open_queries, 1
            total += attention * group * (2 + 2 * open_queries) * arch.head_dim * hidden
        width = gates["intermediate"][layer].sum() if "intermediate" in gates else arch.intermediate_size
        total += mlp * width * 3 * hidden
    return float(total)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("arch", "names"),
    [
        (MHA, ["head", "intermediate", "layer", "hidden"]),
        (MHA, ["head", "head_layer", "mlp", "intermediate"]),
        (MHA, ["layer", "hidden"]),
        (GQA, ["head", "kv_head", "intermediate", "layer", "hidden"]),
        (GQA, ["kv_head", "intermediate", "mlp", "hidden"]),
        (GQA, ["head", "intermediate", "hidden"]),
    ],
)
def test_expected_parameters_counts_what_binary_gates_leave(arch, names, seed):
    gates = keep(arch, names, seed)
    assert masks.expected_parameters(gates, arch).item() == pytest.approx(count(arch, gates), rel=1e-12)


def test_all_gates_open_is_the_prunable_size():
    for arch in (MHA, GQA):
        for names in (["head", "hidden"], ["intermediate"], ["head"], ["layer"], ["mlp"]):
            gates = {n: torch.ones(masks.MASK_KINDS[n].shape(arch), dtype=torch.float64) for n in names}
            assert masks.expected_parameters(gates, arch).item() == masks.prunable_parameters(names, arch)


def test_prunable_parts_follow_the_masks():
    attention = MHA.n_layers * 4 * 64 * 64
    mlp = MHA.n_layers * 3 * 64 * 96
    assert masks.prunable_parameters(["head"], MHA) == attention
    assert masks.prunable_parameters(["intermediate", "mlp"], MHA) == mlp
    assert masks.prunable_parameters(["hidden"], MHA) == attention + mlp


def test_needed_kinds_are_the_sizes_that_shrink():
    assert masks.needed_kinds(MHA, MHA.resized(n_layers=2)) == ["layer"]
    assert masks.needed_kinds(MHA, MHA.resized(n_heads=2, n_kv_heads=2, d_model=32)) == ["head", "hidden"]
    assert masks.needed_kinds(GQA, GQA.resized(n_heads=4, n_kv_heads=1)) == ["kv_head"]
    assert masks.needed_kinds(GQA, GQA.resized(n_heads=4, n_kv_heads=2)) == ["head"]
    assert masks.needed_kinds(GQA, GQA.resized(n_heads=2, n_kv_heads=1)) == ["head", "kv_head"]


def test_grouped_heads_compete_within_their_group():
    log_alpha = torch.arange(24.0).view(3, 8)
    assert masks.rows("head", log_alpha, GQA).shape == (6, 4)
    assert masks.rows("head", torch.zeros(3, 4), MHA).shape == (3, 4)


def test_shapes_that_cannot_be_reached_or_exported_are_refused():
    (problem,) = pruning_problems(GQA, GQA.resized(n_heads=6, n_kv_heads=1), ["head", "kv_head"])
    assert "6 query heads for each KV head, the source has 4; groups only shrink" in problem
    neox = MHA.resized(family="gpt_neox")
    kinds = ["head", "hidden"]
    (problem,) = pruning_problems(neox, neox.resized(n_heads=2, n_kv_heads=2, d_model=48), kinds)
    assert problem.endswith("d_model must be n_heads times 16: set d_model=32.")
    assert not pruning_problems(neox, neox.resized(n_heads=2, n_kv_heads=2, d_model=32), kinds)
