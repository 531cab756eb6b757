"""The product with a masked weight: values and gradients are those of its definition."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from llmshearing.models.layers import masked_linear

MASKS = ("row_vector", "row_scalar", "column_vector", "column_scalar")


def ours(x: Tensor, linear: nn.Linear, masks: dict[str, Tensor]) -> Tensor:
    """The masked product, called as the decoder calls it."""
    rows, columns = (
        [masks[f"{side}_{size}"] for size in ("vector", "scalar") if f"{side}_{size}" in masks]
        for side in ("row", "column")
    )
    return masked_linear(
        x, linear, math.prod(rows) if rows else None, math.prod(columns) if columns else None
    )


def definition(x: Tensor, weight: Tensor, bias: Tensor | None, masks: dict[str, Tensor]) -> Tensor:
    """x (r W c)^T + r b, where r multiplies the rows of W, c its columns, and a mask left out is 1."""
    one = torch.ones((), dtype=x.dtype)
    n_out, n_in = weight.shape
    rows = masks.get("row_vector", one) * masks.get("row_scalar", one) * one.expand(n_out)
    columns = masks.get("column_vector", one) * masks.get("column_scalar", one) * one.expand(n_in)
    out = x @ (rows[:, None] * weight * columns).T
    return out if bias is None else out + rows * bias


@settings(max_examples=150, deadline=None)
@given(
    leading=st.lists(st.integers(0, 3), max_size=4),
    sizes=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    bias=st.booleans(),
    chosen=st.sets(st.sampled_from(MASKS)),
    frozen=st.sets(st.sampled_from(["x", "weight", "bias", *MASKS])),
    closed=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_value_and_gradients_equal_the_definition_in_fp64(leading, sizes, bias, chosen, frozen, closed, seed):
    """In fp32, as masks are; sums have at most 81 terms of size 1, so 1e-4 is far above their rounding."""
    generator = torch.Generator().manual_seed(seed)
    n_in, n_out = sizes
    linear = nn.Linear(n_in, n_out, bias=bias)
    shapes = {"row_vector": (n_out,), "column_vector": (n_in,)}
    masks = {name: torch.rand(shapes.get(name, ()), generator=generator) for name in sorted(chosen)}
    if closed:
        masks = {name: mask * (mask > 0.4) for name, mask in masks.items()}
    x = torch.randn(*leading, n_in, generator=generator)
    grad = torch.randn(*leading, n_out, generator=generator)
    inputs = {"x": x, "weight": linear.weight, **({"bias": linear.bias} if bias else {}), **masks}
    for name, tensor in inputs.items():
        tensor.requires_grad_(name not in frozen)
    exact = {n: t.detach().double().requires_grad_(t.requires_grad) for n, t in inputs.items()}

    out = ours(x, linear, masks)
    exact_masks = {name: exact[name] for name in masks}
    expected = definition(exact["x"], exact["weight"], exact.get("bias"), exact_masks)
    torch.testing.assert_close(out.detach().double(), expected.detach(), atol=1e-4, rtol=1e-4)
    assert out.requires_grad == expected.requires_grad
    if not out.requires_grad:
        return
    out.backward(grad)
    expected.backward(grad.double())
    for name, tensor in inputs.items():
        if name in frozen:
            assert tensor.grad is None, name
        else:
            assert tensor.grad is not None, name
            assert tensor.grad.dtype == torch.float32, name
            torch.testing.assert_close(
                tensor.grad.double(),
                exact[name].grad,
                atol=1e-4,
                rtol=1e-4,
                msg=lambda m, n=name: f"{n}: {m}",
            )
