"""The product with a masked weight: values and gradients are those of its definition."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from llmshearing.models.layers import masked_linear

MASKS = ("row_vector", "row_scalar", "columns")


def ours(x: Tensor, linear: nn.Linear, masks: dict[str, Tensor]) -> Tensor:
    """The masked product, called as the decoder calls it."""
    rows = [masks[name] for name in ("row_vector", "row_scalar") if name in masks]
    return masked_linear(x, linear, math.prod(rows) if rows else None, masks.get("columns"))


def definition(x: Tensor, weight: Tensor, bias: Tensor | None, masks: dict[str, Tensor]) -> Tensor:
    """x (r W c)^T + r b, where r multiplies the rows of W, c its columns, and a mask left out is 1."""
    one = torch.ones((), dtype=x.dtype)
    rows = (
        masks.get("row_vector", one) * masks.get("row_scalar", one) * torch.ones(len(weight), dtype=x.dtype)
    )
    out = x @ (rows[:, None] * weight * masks.get("columns", one)).T
    return out if bias is None else out + rows * bias


@settings(max_examples=150, deadline=None)
@given(
    leading=st.lists(st.integers(0, 3), max_size=4),
    sizes=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    bias=st.booleans(),
    chosen=st.sets(st.sampled_from(MASKS)),
    closed=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_value_and_gradients_equal_the_definition_in_fp64(leading, sizes, bias, chosen, closed, seed):
    """In fp32, as masks are; sums have at most 81 terms of size 1, so 1e-4 is far above their rounding."""
    generator = torch.Generator().manual_seed(seed)
    n_in, n_out = sizes
    linear = nn.Linear(n_in, n_out, bias=bias)
    shapes = {"row_vector": (n_out,), "row_scalar": (), "columns": (n_in,)}
    masks = {name: torch.rand(shapes[name], generator=generator) for name in sorted(chosen)}
    if closed:
        masks = {name: mask * (mask > 0.4) for name, mask in masks.items()}
    x = torch.randn(*leading, n_in, generator=generator)
    grad = torch.randn(*leading, n_out, generator=generator)
    inputs = [x, *masks.values()]
    for tensor in inputs:
        tensor.requires_grad_()
    out = ours(x, linear, masks)
    out.backward(grad)

    parameters = [linear.weight, *([linear.bias] if bias else [])]
    exact = [tensor.detach().double().requires_grad_() for tensor in [*inputs, *parameters]]
    exact_masks = dict(zip(masks, exact[1 : len(inputs)], strict=True))
    expected = definition(exact[0], exact[len(inputs)], exact[-1] if bias else None, exact_masks)
    expected.backward(grad.double())

    torch.testing.assert_close(out.detach().double(), expected.detach(), atol=1e-4, rtol=1e-4)
    names = ["x", *masks, "weight", "bias"]
    for name, mine, reference in zip(names, [*inputs, *parameters], exact, strict=False):
        assert mine.grad is not None, name
        assert mine.grad.dtype == torch.float32, name
        torch.testing.assert_close(mine.grad.double(), reference.grad, atol=1e-4, rtol=1e-4, msg=name)
