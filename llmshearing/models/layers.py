"""The parts of a decoder block, each with its masks folded in where it is cheapest.

B batch, S sequence, D hidden, H query heads, K KV heads, E head dim, F intermediate.

Masks multiply weights, not activations: a weight is smaller than the activations of a batch, and the
export then folds the very same products into the saved weights.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmshearing.models.attention import AttentionFunction
from llmshearing.models.rope import rotate
from llmshearing.shapes.architecture import Architecture

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_fast": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


@dataclass(frozen=True)
class LayerMasks:
    """What masks multiply in one layer.

    hidden: [D], the residual stream; heads: [H * E], the input of the attention output projection;
    intermediate: [F], the input of the down projection; attention, mlp: scalars, the blocks' outputs.
    """

    hidden: Tensor | None = None
    heads: Tensor | None = None
    intermediate: Tensor | None = None
    attention: Tensor | None = None
    mlp: Tensor | None = None


def layer_masks(zs: Mapping[str, Tensor], layer: int, head_dim: int) -> LayerMasks:
    """The masks of one layer out of those of a model (see `masks.py` for names and shapes)."""
    heads = None
    if "head_z" in zs:
        heads = zs["head_z"][layer].flatten()
    if "kv_head_z" in zs:
        kv = zs["kv_head_z"][layer].flatten()
        heads = kv if heads is None else (heads.view(len(kv), -1) * kv[:, None]).flatten()
    return LayerMasks(
        hidden=zs.get("hidden_z"),
        heads=heads,
        intermediate=zs["intermediate_z"][layer].flatten() if "intermediate_z" in zs else None,
        attention=zs["head_layer_z"][layer] if "head_layer_z" in zs else None,
        mlp=zs["mlp_z"][layer] if "mlp_z" in zs else None,
    )


class _MaskedLinear(torch.autograd.Function):
    """x (rows[:, None] * W * columns)^T, making the product of masks and weight anew for the backward pass.

    Under autocast both operands take its type, as those of a plain linear layer do.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        ctx.x_dtype, x = x.dtype, x.to(dtype)
        ctx.save_for_backward(x, weight, rows, columns)
        return F.linear(x, _scaled(weight, rows, columns, dtype))

    @staticmethod
    def backward(ctx, *grads: Tensor):
        x, weight, rows, columns = ctx.saved_tensors
        grad = grads[0]
        grad_x = (grad @ _scaled(weight, rows, columns, grad.dtype)).to(ctx.x_dtype)
        grad_scaled = grad.flatten(0, -2).t() @ x.flatten(0, -2)
        outer = grad_scaled.to(rows.dtype) * weight
        grad_weight = _scaled(grad_scaled, rows, columns, weight.dtype)
        return grad_x, grad_weight, outer @ columns, rows @ outer


def _scaled(weight: Tensor, rows: Tensor, columns: Tensor, dtype: torch.dtype) -> Tensor:
    return (weight * rows[:, None]).mul_(columns).to(dtype)


def masked_linear(x: Tensor, linear: nn.Linear, rows: list[Tensor | None], columns: Tensor | None) -> Tensor:
    """`linear(x)` with masks on its outputs (`rows`, multiplied together) and inputs (`columns`).

    Args:
        rows: masks of size [out] or scalars; None stands for 1.
        columns: mask [in] or None.
    """
    row = None
    for mask in rows:
        row = mask if row is None else row if mask is None else row * mask
    if row is None and columns is None:
        return linear(x)
    ones = torch.ones((), dtype=torch.float32, device=x.device)
    row = (ones if row is None else row).expand(linear.out_features)
    columns = (ones if columns is None else columns).expand(linear.in_features)
    out: Tensor = _MaskedLinear.apply(x, linear.weight, row, columns)  # type: ignore[assignment]
    return out if linear.bias is None else out + (linear.bias * row).to(out.dtype)


def survivors(hidden_z: Tensor | None, size: int) -> Tensor | int:
    """How many dimensions a norm divides by: those whose mask is not 0; stays on the device."""
    return size if hidden_z is None else torch.count_nonzero(hidden_z).clamp(min=1)


class RMSNorm(nn.Module):
    """x / rms(x) * weight, over surviving dimensions; in fp32."""

    def __init__(self, size: int, eps: float, device: str | torch.device | None = None) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size, device=device))

    def forward(self, x: Tensor, hidden_z: Tensor | None = None) -> Tensor:
        """x: [..., D], zero where `hidden_z` [D] is; the result is multiplied by `hidden_z`."""
        wide = x.float()
        variance = wide.square().sum(-1, keepdim=True) / survivors(hidden_z, x.shape[-1])
        normed = (wide * torch.rsqrt(variance + self.eps)).to(x.dtype)
        return normed * (self.weight if hidden_z is None else self.weight * hidden_z.to(self.weight.dtype))


class LayerNorm(nn.Module):
    """(x - mean) / std * weight + bias, over surviving dimensions; in fp32."""

    def __init__(self, size: int, eps: float, device: str | torch.device | None = None) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size, device=device))
        self.bias = nn.Parameter(torch.zeros(size, device=device))

    def forward(self, x: Tensor, hidden_z: Tensor | None = None) -> Tensor:
        """x: [..., D], zero where `hidden_z` [D] is; the result is multiplied by `hidden_z`."""
        if hidden_z is None:
            return F.layer_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
        count = survivors(hidden_z, x.shape[-1])
        wide = x.float()
        centred = (wide - wide.sum(-1, keepdim=True) / count) * (hidden_z != 0)
        variance = centred.square().sum(-1, keepdim=True) / count
        normed = centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias
        return (normed * hidden_z).to(x.dtype)


def make_norm(arch: Architecture, size: int, device: str | torch.device | None) -> RMSNorm | LayerNorm:
    """The norm of the family of `arch`."""
    return (LayerNorm if arch.layer_norms else RMSNorm)(size, arch.norm_eps, device)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; multi-head attention is the case K = H."""

    def __init__(self, arch: Architecture, function: AttentionFunction, device=None) -> None:
        super().__init__()
        self.arch = arch
        self.function = function
        queries, keys = arch.n_heads * arch.head_dim, arch.n_kv_heads * arch.head_dim
        self.make_projections(arch, queries, keys, device)
        if arch.qk_norm:
            self.q_norm = RMSNorm(arch.head_dim, arch.norm_eps, device)
            self.k_norm = RMSNorm(arch.head_dim, arch.norm_eps, device)
        self.out_proj = nn.Linear(queries, arch.d_model, bias=arch.out_bias, device=device)

    def make_projections(self, arch: Architecture, queries: int, keys: int, device) -> None:
        """Make the matrices that lead to q, k and v."""
        self.wq = nn.Linear(arch.d_model, queries, bias=arch.qkv_bias, device=device)
        self.wk = nn.Linear(arch.d_model, keys, bias=arch.qkv_bias, device=device)
        self.wv = nn.Linear(arch.d_model, keys, bias=arch.qkv_bias, device=device)

    def project(self, x_BSD: Tensor) -> list[Tensor]:
        """q [B, S, H, E], k and v [B, S, K, E]."""
        return [w(x_BSD).unflatten(-1, (-1, self.arch.head_dim)) for w in (self.wq, self.wk, self.wv)]

    def forward(self, x_BSD: Tensor, rope: tuple[Tensor, Tensor], masks: LayerMasks) -> Tensor:
        """The block's contribution to the residual stream, [B, S, D]."""
        q, k, v = self.project(x_BSD)
        if self.arch.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, *rope), rotate(k, *rope)
        # Transposed views: the output then has the layout of q, and flattening it below copies nothing.
        q, k, v = (t.to(v.dtype).transpose(1, 2) for t in (q, k, v))
        out_BHSE = self.function(q, k, v, self.arch.sliding_window)
        out = out_BHSE.transpose(1, 2).flatten(2)
        heads = None if masks.heads is None else self._columns(masks.heads)
        return masked_linear(out, self.out_proj, [masks.hidden, masks.attention], heads)

    def _columns(self, heads: Tensor) -> Tensor:
        """A mask of query heads [H], or of KV heads [K], as one of the output projection's inputs."""
        return heads.repeat_interleave(self.out_proj.in_features // len(heads))


class FusedAttention(Attention):
    """Attention whose q, k and v are one matrix of rows [q | k | v] head by head (GPT-NeoX)."""

    def make_projections(self, arch: Architecture, queries: int, keys: int, device) -> None:
        self.query_key_value = nn.Linear(arch.d_model, queries + 2 * keys, bias=arch.qkv_bias, device=device)

    def project(self, x_BSD: Tensor) -> list[Tensor]:
        by_head = self.query_key_value(x_BSD).unflatten(-1, (-1, 3 * self.arch.head_dim))
        return list(by_head.chunk(3, dim=-1))


class MLP(nn.Module):
    """down(activation(up(x))), or gated: down(activation(gate(x)) * up(x))."""

    def __init__(self, arch: Architecture, device=None) -> None:
        super().__init__()
        if arch.activation not in ACTIVATIONS:
            raise ValueError(
                f"The model's activation is {arch.activation!r}; supported: {', '.join(ACTIVATIONS)}."
            )
        self.activation = ACTIVATIONS[arch.activation]
        sizes = {"bias": arch.mlp_bias, "device": device}
        self.gate_proj = (
            nn.Linear(arch.d_model, arch.intermediate_size, **sizes) if arch.mlp_matrices == 3 else None
        )
        self.up_proj = nn.Linear(arch.d_model, arch.intermediate_size, **sizes)
        self.down_proj = nn.Linear(arch.intermediate_size, arch.d_model, **sizes)

    def forward(self, x_BSD: Tensor, masks: LayerMasks) -> Tensor:
        """The block's contribution to the residual stream, [B, S, D]."""
        up = self.up_proj(x_BSD)
        inner = self.activation(up) if self.gate_proj is None else self.activation(self.gate_proj(x_BSD)) * up
        return masked_linear(inner, self.down_proj, [masks.hidden, masks.mlp], masks.intermediate)
