"""The attention implementations agree with the definition, windows and shared KV heads included."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmshearing.models.attention import attention_function, eager, sdpa


def qkv(batch, heads, groups, length, size, dtype=torch.float32, device="cpu"):
    shapes = [(batch, heads * groups, length, size)] + [(batch, heads, length, size)] * 2
    return [torch.randn(shape, dtype=dtype, device=device) for shape in shapes]


def by_definition(q, k, v, window):
    """One position at a time, straight from the formula."""
    groups, length = q.shape[1] // k.shape[1], q.shape[2]
    out = torch.empty_like(q)
    for head in range(q.shape[1]):
        for i in range(length):
            first = max(0, i + 1 - (window or length))
            keys, values = (x[:, head // groups, first : i + 1] for x in (k, v))
            weights = (keys @ q[:, head, i, :, None]).squeeze(-1) / q.shape[-1] ** 0.5
            out[:, head, i] = (weights.softmax(-1)[:, None] @ values).squeeze(1)
    return out


@settings(max_examples=40, deadline=None)
@given(
    heads=st.integers(1, 3),
    groups=st.integers(1, 3),
    length=st.integers(1, 23),
    size=st.sampled_from([2, 8]),
    window=st.none() | st.integers(1, 25),
)
@pytest.mark.parametrize("function", [eager, sdpa])
def test_attention_is_its_definition(function, heads, groups, length, size, window):
    q, k, v = qkv(2, heads, groups, length, size)
    assert torch.allclose(function(q, k, v, window), by_definition(q, k, v, window), atol=1e-5)


@pytest.mark.parametrize("window", [None, 5])
def test_gradients_of_sdpa_are_those_of_eager(window):
    tensors = [x.requires_grad_() for x in qkv(1, 2, 2, 17, 8)]
    weights = torch.randn(1, 4, 17, 8)
    eager_grads = torch.autograd.grad((eager(*tensors, window) * weights).sum(), tensors)
    sdpa_grads = torch.autograd.grad((sdpa(*tensors, window) * weights).sum(), tensors)
    for a, b in zip(eager_grads, sdpa_grads, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 33])
def test_flash_is_eager(window):
    pytest.importorskip("flash_attn")
    q, k, v = qkv(2, 2, 4, 200, 64, torch.bfloat16, "cuda")
    expected = eager(q.float(), k.float(), v.float(), window)
    assert (attention_function("flash")(q, k, v, window).float() - expected).abs().max() < 2e-2


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 33])
def test_sdpa_is_eager_on_a_gpu(window):
    q, k, v = qkv(2, 2, 4, 200, 64, torch.bfloat16, "cuda")
    expected = eager(q.float(), k.float(), v.float(), window)
    assert (sdpa(q, k, v, window).float() - expected).abs().max() < 2e-2


def test_an_unknown_implementation_is_rejected():
    with pytest.raises(ValueError, match="attn_impl is 'triton'; expected one of sdpa, flash, eager"):
        attention_function("triton")


def test_flash_without_its_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(ImportError, match=r"pip install flash-attn --no-build-isolation.*attn_impl=sdpa"):
        attention_function("flash")
