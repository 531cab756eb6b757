"""Shapes near a budget: valid, near, the published one among them."""

import pytest

from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.budgets import (
    NEAR,
    Budget,
    Use,
    cache_bytes,
    memory_bytes,
    nearest_shape,
    shapes_near,
    step_bytes,
)
from llmshearing.shapes.counts import parameters
from llmshearing.shapes.hf_config import architecture_to_hf
from llmshearing.shapes.reachable import export_warnings, pruning_problems
from llmshearing.shapes.units import needed_kinds

LLAMA_2_7B = Architecture(4096, 32, 32, 128, 32, 11008, 32000, 4096)
LLAMA_3_8B = Architecture(4096, 32, 8, 128, 32, 14336, 128256, 8192)
PYTHIA = {"family": "gpt_neox", "parallel_residual": True, "activation": "gelu", "rotary_pct": 0.25}
PYTHIA |= dict.fromkeys(("qkv_bias", "out_bias", "mlp_bias"), True)
PYTHIA_1B4 = Architecture(2048, 16, 16, 128, 24, 8192, 50304, 2048, **PYTHIA)
QWEN3 = Architecture(
    1024, 16, 8, 128, 28, 3072, 151936, 8192, family="qwen3", qk_norm=True, tie_embeddings=True
)
SMALL = Architecture(512, 8, 4, 64, 4, 1024, 256, 64)
USE = Use(context=8192, batch=4)


def test_bytes_of_llama_3_8b_are_those_one_counts_by_hand():
    assert cache_bytes(LLAMA_3_8B, Use(8192)) == 2**30  # 2 x 2 bytes x 32 layers x 8 x 128 x 8192
    assert memory_bytes(LLAMA_3_8B, USE) == 2 * parameters(LLAMA_3_8B) + 4 * 2**30
    assert step_bytes(LLAMA_3_8B, Use(8192)) == 2 * (parameters(LLAMA_3_8B) - 128256 * 4096) + 2**30
    assert cache_bytes(LLAMA_3_8B.resized(sliding_window=1024), USE) == 4 * 2**27


def test_at_2_7b_the_shape_of_sheared_llama_comes_first():
    first = shapes_near(LLAMA_2_7B, Budget(parameters, 2.7e9, strict=False), 128)[0]
    assert (first.d_model, first.n_heads, first.n_layers, first.intermediate_size) == (2560, 20, 32, 6912)


@pytest.mark.parametrize("source", [LLAMA_2_7B, LLAMA_3_8B, PYTHIA_1B4, QWEN3])
@pytest.mark.parametrize("part", [0.45, 0.7])
@pytest.mark.parametrize("kind", ["parameters", "memory", "speed"])
def test_every_shape_is_valid_and_meets_its_budget(source, part, kind):
    cost = {
        "parameters": parameters,
        "memory": lambda arch: memory_bytes(arch, USE),
        "speed": lambda arch: step_bytes(arch, USE),
    }[kind]
    limit = part * cost(source)
    found = shapes_near(source, Budget(cost, limit, strict=kind != "parameters"), 64)
    assert found
    assert [shape.n_layers for shape in found] == sorted({shape.n_layers for shape in found}, reverse=True)
    for shape in found:
        assert not pruning_problems(source, shape, needed_kinds(source, shape), "")
        assert not export_warnings(shape)
        architecture_to_hf(shape)
        assert shape.d_model % 64 == 0
        assert shape.intermediate_size % 64 == 0
        assert cost(shape) == pytest.approx(limit, rel=0.05)
        assert kind == "parameters" or cost(shape) <= limit


@pytest.mark.parametrize("cost", [parameters, lambda arch: step_bytes(arch, Use(4096))])
def test_a_shape_below_a_limit_meets_it_however_far(cost):
    """Steps between the shapes of a small model are larger than what counts as near."""
    listed = [
        shape
        for part in (0.2, 0.4, 0.6)
        for shape in shapes_near(SMALL, Budget(cost, part * cost(SMALL)), 64)
    ]
    far = 0
    for part in (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7):
        budget = Budget(cost, part * cost(SMALL))
        found = shapes_near(SMALL, budget, 64)
        assert found or not any(budget.met(shape) for shape in listed)
        assert all(cost(shape) <= budget.limit for shape in found)
        if any(budget.off(shape) > NEAR for shape in found):
            assert len(found) == 1
            far += 1
    assert far
    assert not Budget(cost, 2 * cost(SMALL), strict=False).met(SMALL)


def test_the_source_itself_is_no_shape_for_a_budget_just_below_it():
    found = shapes_near(LLAMA_2_7B, Budget(parameters, 0.999 * parameters(LLAMA_2_7B), strict=False), 128)
    assert found
    assert LLAMA_2_7B not in found


def test_without_a_shape_the_nearest_is_found():
    budget = Budget(parameters, 1e6, strict=False)
    assert not shapes_near(LLAMA_2_7B, budget, 128)
    near = nearest_shape(LLAMA_2_7B, budget, 128)
    assert (near.d_model, near.n_layers) == (1024, 16)
    assert near.intermediate_size == 2176  # as much less than a quarter as widths may differ, 3/4 of it
