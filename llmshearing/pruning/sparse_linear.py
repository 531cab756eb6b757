"""Linear layers under a mask on single weights: one that is learned, or one that is given.

O outputs, I inputs, M size of a block along the inputs, G = I / M blocks of a row, C candidates of a block.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmshearing.pruning import patterns


@dataclass(frozen=True)
class Draw:
    """How the masks of one forward pass are drawn.

    Attributes:
        scale, temperature: of MaskLLM's Gumbel softmax.
        hard: whether the mask is the likeliest candidate, with the gradient of the soft one.
        key: what the noise depends on, beside the name of the weight.
    """

    scale: float
    temperature: float
    hard: bool
    key: tuple[int, ...]


@dataclass
class Sampling:
    """What the learned layers of a model share.

    Attributes:
        draw: how to draw in the forward pass that runs now.
        found: what each of them computed in it: the squared norm of the masked weight (differentiable), the
            sum over blocks of the likeliest candidate's probability, and the number of blocks.
        collects: whether to collect it; a pass that is repeated for its activations does not.
    """

    draw: Draw
    found: list[tuple[Tensor, Tensor, int]] = field(default_factory=list)
    collects: bool = False


class LearnedLinear(nn.Linear):
    """A linear layer whose weight stays as it is while a mask on it is learned (MaskLLM).

    In training the mask is a soft sample, drawn anew in each forward pass; in evaluation it is the candidate
    with the highest logit.

    Attributes:
        mask_logits: [O, C, G].
    """

    def __init__(self, linear: nn.Linear, name: str, pattern: patterns.Pattern, sampling: Sampling) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.name = name
        self.pattern = pattern
        self.sampling = sampling
        shape = (self.out_features, pattern.choices, self.in_features // pattern.group)
        # In fp32 whatever the weights are in: a step changes a logit by less than bf16 resolves.
        self.mask_logits = nn.Parameter(torch.zeros(shape, device=linear.weight.device))

    @torch.compiler.disable  # what a compiler would make of generators is not what they draw here
    def forward(self, x: Tensor) -> Tensor:
        candidates = self.pattern.candidates().to(x.device)
        if not self.training:
            mask = patterns.chosen_mask(self.mask_logits, candidates)
            return F.linear(x, self.weight * mask, self.bias)
        outputs = _SampledLinear.apply(
            x, self.weight, self.mask_logits, candidates, self.sampling.draw, self.name
        )
        out, norm, likeliest = outputs  # type: ignore[misc]
        if self.sampling.collects:
            self.sampling.found.append((norm, likeliest, self.mask_logits[:, 0].numel()))
        return out if self.bias is None else out + self.bias.to(out.dtype)


class FixedLinear(nn.Linear):
    """A linear layer under a mask that stays as it is; closed weights get no gradient.

    Attributes:
        mask_bits: the mask, flattened, 8 weights a byte.
    """

    mask_bits: Tensor

    def __init__(self, linear: nn.Linear, name: str) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.name = name
        count = patterns.bytes_of(self.out_features * self.in_features)
        bits = torch.full((count,), 255, dtype=torch.uint8, device=linear.weight.device)
        self.register_buffer("mask_bits", bits)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _FixedLinear.apply(x, self.weight, self.mask_bits)  # type: ignore[assignment]
        return out if self.bias is None else out + self.bias.to(out.dtype)


class _SampledLinear(torch.autograd.Function):
    """x (W * mask)^T, with the squared norm of W * mask; the mask is drawn again in the backward pass.

    Gradients reach x and the logits: the weight is frozen. Under autocast the product takes its type; the
    mask and the norm are computed in fp32.
    """

    @staticmethod
    def forward(ctx, x, weight, logits, candidates, draw, name):
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        assert not weight.requires_grad
        ctx.x_dtype, ctx.draw, ctx.name = x.dtype, draw, name
        x = x.to(dtype)
        ctx.save_for_backward(x, weight, logits, candidates)
        with torch.autocast(device, enabled=False):
            y_OCG = _draw(logits, draw, name)
            likeliest = y_OCG.amax(-2).sum()
            masked = _masked(weight, y_OCG, candidates, draw.hard)
            norm = torch.linalg.vector_norm(masked).square()
            ctx.mark_non_differentiable(likeliest)
            return F.linear(x, masked.to(dtype)), norm, likeliest

    @staticmethod
    def backward(ctx, *grads: Tensor):
        x, weight, logits, candidates = ctx.saved_tensors
        grad_out, grad_norm, _ = grads
        draw = ctx.draw
        y_OCG = _draw(logits, draw, ctx.name)
        masked = _masked(weight, y_OCG, candidates, draw.hard)
        grad_x = (grad_out @ masked.to(grad_out.dtype)).to(ctx.x_dtype) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[2]:
            return grad_x, None, None, None, None, None
        grad_masked = grad_out.flatten(0, -2).T @ x.flatten(0, -2)
        # of the norm: d ||W M||^2 / d(W M) = 2 W M
        grad_masked = torch.add(grad_masked.float(), masked.mul_(2 * grad_norm))
        grad_mask = grad_masked.mul_(weight)
        grad_logits = patterns.choice_gradient(y_OCG, grad_mask, candidates, draw.scale, draw.temperature)
        return grad_x, None, grad_logits.to(logits.dtype), None, None, None


class _FixedLinear(torch.autograd.Function):
    """x (W * mask)^T, unpacking the mask again in the backward pass; W's gradient has the same mask."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bits: Tensor) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        ctx.x_dtype, x = x.dtype, x.to(dtype)
        ctx.save_for_backward(x, weight, bits)
        return F.linear(x, (weight * patterns.unpack_bits(bits, weight.shape)).to(dtype))

    @staticmethod
    def backward(ctx, *grads: Tensor):
        x, weight, bits = ctx.saved_tensors
        grad, mask = grads[0], patterns.unpack_bits(bits, weight.shape)
        wants_x, wants_weight, _ = ctx.needs_input_grad
        grad_x = (grad @ (weight * mask).to(grad.dtype)).to(ctx.x_dtype) if wants_x else None
        if not wants_weight:
            return grad_x, None, None
        return grad_x, (grad.flatten(0, -2).T @ x.flatten(0, -2)).to(weight.dtype).mul_(mask), None


def _draw(logits_OCG: Tensor, draw: Draw, name: str) -> Tensor:
    """y of this pass: the same whenever it is asked for."""
    generator = keyed_generator(logits_OCG.device, *draw.key, name=name)
    uniform = torch.rand(logits_OCG.shape, generator=generator, device=logits_OCG.device)
    return patterns.choice(logits_OCG, uniform, draw.scale, draw.temperature)


def _masked(weight_OI: Tensor, y_OCG: Tensor, candidates_CM: Tensor, hard: bool) -> Tensor:
    """The weight under the mask, in fp32."""
    return patterns.soft_mask(patterns.one_hot(y_OCG) if hard else y_OCG, candidates_CM).mul_(weight_OI)


def keyed_generator(device: torch.device, *key: int, name: str) -> torch.Generator:
    """A generator that depends on numbers and a name alone."""
    words = np.random.SeedSequence((*key, *name.encode())).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(words[0] >> np.uint64(1)))


def replace_linears(blocks: nn.Module, make: Callable[[nn.Linear, str], nn.Linear]) -> list[Any]:
    """Replace every linear layer inside `blocks` by `make(layer, name)`, in place; the new ones in order."""
    made = []
    for name, linear in [(n, m) for n, m in blocks.named_modules() if isinstance(m, nn.Linear)]:
        parent, _, leaf = name.rpartition(".")
        made.append(make(linear, f"blocks.{name}"))
        setattr(blocks.get_submodule(parent), leaf, made[-1])
    return made
