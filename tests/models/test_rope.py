"""Rotary embedding: what rotation preserves, and the frequencies of every scaling."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmshearing.models.rope import rope_tables, rotate
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.hf_config import architecture_from_hf
from twins import CONFIGS, LIMIT

CPU = torch.device("cpu")


def arch(**fields) -> Architecture:
    sizes = {
        "d_model": 32,
        "n_heads": 4,
        "n_kv_heads": 4,
        "head_dim": 8,
        "n_layers": 1,
        "intermediate_size": 8,
    }
    return Architecture(**{**sizes, "vocab_size": 8, "max_seq_len": LIMIT, **fields})


def test_angles_are_position_times_powers_of_the_base():
    cos, sin = rope_tables(arch(rope_theta=100.0), 5, CPU)
    for position in range(5):
        for pair in range(4):
            angle = position * 100.0 ** (-2 * pair / 8)
            assert cos[position, pair].item() == pytest.approx(math.cos(angle), abs=1e-6)
            assert sin[position, pair].item() == pytest.approx(math.sin(angle), abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), shift=st.integers(0, 20))
def test_products_depend_on_distances_alone(seed, shift):
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=generator)
    cos, sin = rope_tables(arch(), 40, CPU)

    def product(i, j):
        return (rotate(q, cos[i : i + 1], sin[i : i + 1]) * rotate(k, cos[j : j + 1], sin[j : j + 1])).sum()

    assert product(9 + shift, 2 + shift).item() == pytest.approx(product(9, 2).item(), abs=1e-4)


def test_only_the_rotary_part_of_a_head_turns():
    x = torch.randn(1, 6, 2, 8)
    cos, sin = rope_tables(arch(rotary_pct=0.5), 6, CPU)
    turned = rotate(x, cos, sin)
    assert torch.equal(turned[..., 4:], x[..., 4:])
    assert torch.equal(turned[:, 0], x[:, 0])
    assert not torch.allclose(turned[:, 1:, :, :4], x[:, 1:, :, :4])
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-5)


def test_linear_scaling_stretches_positions():
    plain, _ = rope_tables(arch(), 10, CPU)
    scaled, _ = rope_tables(arch(rope_scaling={"rope_type": "linear", "factor": 2.0}), 20, CPU)
    assert torch.allclose(scaled[::2], plain, atol=1e-6)


def test_dynamic_scaling_begins_beyond_the_limit():
    dynamic = arch(rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    plain = arch()
    assert torch.equal(rope_tables(dynamic, LIMIT, CPU)[0], rope_tables(plain, LIMIT, CPU)[0])
    assert not torch.allclose(rope_tables(dynamic, 2 * LIMIT, CPU)[0], rope_tables(plain, 2 * LIMIT, CPU)[0])


@pytest.mark.parametrize("name", ["llama rope yarn", "llama rope yarn scaled", "llama rope llama3"])
def test_other_scalings_change_frequencies(name):
    scaled = architecture_from_hf(CONFIGS[name].to_dict())
    assert not torch.allclose(
        rope_tables(scaled, LIMIT, CPU)[0], rope_tables(scaled.resized(rope_scaling=None), LIMIT, CPU)[0]
    )
