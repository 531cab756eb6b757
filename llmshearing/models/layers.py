"""The parts of a decoder block, under the gates that the table of units names for their weights.

B batch, S sequence, D hidden, H query heads, K KV heads, E head dim, F intermediate.

Gates multiply weights, not activations: a weight is smaller than the activations of a batch, and the export
folds the very same products into the saved weights.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmshearing.models.attention import AttentionFunction
from llmshearing.models.rope import rotate
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.layer_gates import LayerGates

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_fast": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


class _MaskedLinear(torch.autograd.Function):
    """x (rows[:, None] * W * columns)^T over the executed rows and columns of W.

    They are gathered and multiplied again in the backward pass, so that nothing of a weight is kept for it.
    Under autocast both operands take its type, as those of a plain linear layer do.
    """

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        weight: Tensor,
        rows: Tensor | None,
        columns: Tensor | None,
        executed: tuple[Tensor | None, Tensor | None],
    ) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        ctx.x_dtype, x = x.dtype, x.to(dtype)
        ctx.save_for_backward(x, weight, rows, columns, *executed)
        return F.linear(x, _scaled(gather(weight, *executed), rows, columns, dtype))

    @staticmethod
    def backward(ctx, *grads: Tensor):
        x, weight, rows, columns, *executed = ctx.saved_tensors
        wants_x, wants_weight, wants_rows, wants_columns, _ = ctx.needs_input_grad
        grad = grads[0]
        found: list[Tensor | None] = [None] * 5
        part = gather(weight, *executed)
        if wants_x:
            found[0] = (grad @ _scaled(part, rows, columns, grad.dtype)).to(ctx.x_dtype)
        if not (wants_weight or wants_rows or wants_columns):
            return tuple(found)
        grad_scaled = grad.reshape(-1, grad.shape[-1]).t() @ x.reshape(-1, x.shape[-1])
        if wants_weight:
            found[1] = spread(_scaled(grad_scaled, rows, columns, weight.dtype), weight, *executed)
        if wants_rows or wants_columns:
            outer = grad_scaled.to(torch.float32) * part
            n_out, n_in = outer.shape
            if wants_rows:
                found[2] = outer @ (outer.new_ones(n_in) if columns is None else columns)
            if wants_columns:
                found[3] = (outer.new_ones(n_out) if rows is None else rows) @ outer
        return tuple(found)


class _Gathered(torch.autograd.Function):
    """The executed columns of x [..., n]."""

    @staticmethod
    def forward(ctx, x: Tensor, columns: Tensor) -> Tensor:
        ctx.save_for_backward(columns)
        ctx.shape = x.shape
        return x.index_select(-1, columns)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        (columns,) = ctx.saved_tensors
        return _spread_columns(grads[0], columns, ctx.shape[-1]), None


class _Idle(torch.autograd.Function):
    """x, with gradients of 0 for the parameters of what is skipped.

    Without them the optimizer would treat a skipped weight differently from one whose gradient is 0, and
    processes that skip different layers would not reduce the same gradients.
    """

    @staticmethod
    def forward(ctx, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.zeros = [p.new_zeros(()).expand(p.shape) for p in parameters]
        return x.view_as(x)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        wanted = zip(ctx.zeros, ctx.needs_input_grad[1:], strict=True)
        return grads[0], *(zero if wants else None for zero, wants in wanted)


def idle(x: Tensor, *skipped: nn.Module | None) -> Tensor:
    """x; the parameters of the skipped modules get gradients of 0."""
    return _Idle.apply(x, *(p for module in skipped if module is not None for p in module.parameters()))  # type: ignore[return-value]


def executed_columns(x: Tensor, columns: Tensor | None) -> Tensor:
    """The columns of x [..., n] that are executed; None: all."""
    return x if columns is None else _Gathered.apply(x, columns)  # type: ignore[return-value]


def gather(weight: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """The executed rows and columns of a matrix; None: all."""
    part = weight if rows is None else weight.index_select(0, rows)
    return part if columns is None else part.index_select(1, columns)


def spread(part: Tensor, weight: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """The inverse of `gather`: `part` in its place in a matrix like `weight`, 0 elsewhere."""
    if columns is not None:
        part = _spread_columns(part, columns, weight.shape[1])
    return part if rows is None else torch.zeros_like(weight).index_copy_(0, rows, part)


def _spread_columns(part: Tensor, columns: Tensor, size: int) -> Tensor:
    # scatter_ is several times as fast as index_copy_ in the last dimension
    return part.new_zeros(*part.shape[:-1], size).scatter_(-1, columns.expand(part.shape), part)


def _scaled(weight: Tensor, rows: Tensor | None, columns: Tensor | None, dtype: torch.dtype) -> Tensor:
    scaled = weight if rows is None else weight * rows[:, None]
    if columns is not None:
        scaled = scaled * columns if rows is None else scaled.mul_(columns)
    return scaled.to(dtype)


def masked_linear(
    x: Tensor,
    linear: nn.Linear,
    rows: Tensor | None,
    columns: Tensor | None,
    executed: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Tensor:
    """`linear(x)` with its weight and bias scaled.

    Args:
        x: [..., in], where not all columns are executed the executed ones.
        rows: factors of the outputs, [out] or a scalar; None stands for 1.
        columns: factors of the inputs, [in] or a scalar; None stands for 1.
        executed: indices of the rows and of the columns of the weight to compute with; None stands for all.

    Raises:
        ValueError: for factors of a layer that computes with masks of its own.
    """
    at_rows, at_columns = executed
    if rows is None and columns is None and at_rows is None and at_columns is None:
        return linear(x)
    if type(linear).forward is not nn.Linear.forward:
        raise ValueError(
            "The model has masks on single weights, with which gates of whole units cannot be combined: "
            "prune it to its shape first."
        )
    n_out = linear.out_features if at_rows is None else len(at_rows)
    rows = None if rows is None else rows.expand(n_out)
    columns = None if columns is None else columns.expand(x.shape[-1])
    out: Tensor = _MaskedLinear.apply(x, linear.weight, rows, columns, executed)  # type: ignore[assignment]
    if linear.bias is None:
        return out
    bias = linear.bias if at_rows is None else linear.bias.index_select(0, at_rows)
    return out + (bias if rows is None else bias * rows).to(out.dtype)


def gated(x: Tensor, linear: nn.Linear, gates: LayerGates, part: str) -> Tensor:
    """`linear(x)` under the gates that the table of units names for weight `part`."""
    executed = (gates.executed_rows(part), gates.executed_columns(part))
    return masked_linear(x, linear, gates.rows(part), gates.columns(part), executed)


def open_units(gates: Tensor | None, size: int) -> Tensor | int:
    """How many dimensions a norm divides by: those whose gate is not 0; stays on the device."""
    return size if gates is None else torch.count_nonzero(gates).clamp(min=1)


class RMSNorm(nn.Module):
    """x / rms(x) * (offset + weight), over open dimensions; in fp32."""

    def __init__(
        self, size: int, eps: float, device: str | torch.device | None = None, offset: float = 0.0
    ) -> None:
        super().__init__()
        self.eps = eps
        self.offset = offset
        self.weight = nn.Parameter(torch.full((size,), 1.0 - offset, device=device))

    def forward(
        self,
        x: Tensor,
        units: Tensor | None = None,
        scale: Tensor | None = None,
        executed: Tensor | None = None,
    ) -> Tensor:
        """Normalise x [..., D], which is 0 where the gates `units` [D] are; `scale` [D] scales the weight.

        Where not all dimensions are executed, D are the executed ones, and `executed` their indices.
        """
        wide = x.float()
        variance = wide.square().sum(-1, keepdim=True) / open_units(units, x.shape[-1])
        normed = (wide * torch.rsqrt(variance + self.eps)).to(x.dtype)
        weight = executed_columns(self.weight, executed)
        weight = weight + self.offset if self.offset else weight
        return normed * (weight if scale is None else weight * scale.to(weight.dtype))


class LayerNorm(nn.Module):
    """(x - mean) / std * weight + bias, over open dimensions; in fp32."""

    def __init__(self, size: int, eps: float, device: str | torch.device | None = None) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size, device=device))
        self.bias = nn.Parameter(torch.zeros(size, device=device))

    def forward(
        self,
        x: Tensor,
        units: Tensor | None = None,
        scale: Tensor | None = None,
        executed: Tensor | None = None,
    ) -> Tensor:
        """As `RMSNorm.forward`; `scale` scales weight and bias."""
        if units is None and scale is None and executed is None:
            return F.layer_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
        count = open_units(units, x.shape[-1])
        wide = x.float()
        centred = wide - wide.sum(-1, keepdim=True) / count
        if units is not None:
            centred = centred * (units != 0)
        variance = centred.square().sum(-1, keepdim=True) / count
        weight, bias = executed_columns(self.weight, executed), executed_columns(self.bias, executed)
        normed = centred * torch.rsqrt(variance + self.eps) * weight + bias
        return (normed if scale is None else normed * scale).to(x.dtype)


def make_norm(arch: Architecture, size: int, device: str | torch.device | None) -> RMSNorm | LayerNorm:
    """The norm of the family of `arch`."""
    if arch.layer_norms:
        return LayerNorm(size, arch.norm_eps, device)
    return RMSNorm(size, arch.norm_eps, device, arch.norm_offset)


def inner_norm(x: Tensor, norm: nn.Module, gates: LayerGates, part: str) -> Tensor:
    """Norm `part` inside a block, over the open rows of the weight before it; 0 where they are closed."""
    opened = gates.open_rows(part)
    x = x if opened is None else x * opened.to(x.dtype)
    return norm(x, opened, gates.rows(part), gates.executed_rows(part))


def normed(x: Tensor, norm: nn.Module | None, gates: LayerGates, part: str) -> Tensor:
    """`norm(x)` under the gates that the table of units names for its weight `part`; x without a norm."""
    return x if norm is None else norm(x, gates.owner(part), gates.rows(part), gates.executed_rows(part))


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; multi-head attention is the case K = H.

    Args:
        layer: which layer of `arch` this is, whose window it has.
    """

    def __init__(self, arch: Architecture, function: AttentionFunction, layer: int, device=None) -> None:
        super().__init__()
        self.arch = arch
        self.function = function
        self.window = arch.window(layer)
        queries, keys = arch.n_heads * arch.head_dim, arch.n_kv_heads * arch.head_dim
        self.make_projections(arch, queries, keys, device)
        if arch.qk_norm:
            sizes = (queries, keys) if arch.qk_norm_over_heads else (arch.head_dim, arch.head_dim)
            self.q_norm, self.k_norm = (make_norm(arch, size, device) for size in sizes)
        self.out_proj = nn.Linear(queries, arch.d_model, bias=arch.out_bias, device=device)
        self.post_norm = make_norm(arch, arch.d_model, device) if arch.post_norms else None

    def make_projections(self, arch: Architecture, queries: int, keys: int, device) -> None:
        """Make the matrices that lead to q, k and v."""
        self.wq = nn.Linear(arch.d_model, queries, bias=arch.qkv_bias, device=device)
        self.wk = nn.Linear(arch.d_model, keys, bias=arch.qkv_bias, device=device)
        self.wv = nn.Linear(arch.d_model, keys, bias=arch.qkv_bias, device=device)

    def project(self, x_BSD: Tensor, gates: LayerGates) -> list[Tensor]:
        """q [B, S, H, E], k and v [B, S, K, E]."""
        return [
            gated(x_BSD, linear, gates, f"attn.{name}").unflatten(-1, (-1, self.arch.head_dim))
            for name, linear in (("wq", self.wq), ("wk", self.wk), ("wv", self.wv))
        ]

    def forward(self, x_BSD: Tensor, rope: tuple[Tensor, Tensor] | None, gates: LayerGates) -> Tensor:
        """The block's contribution to the residual stream, [B, S, D]; without `rope` nothing is rotated."""
        q, k, v = self.project(x_BSD, gates)
        if self.arch.qk_norm:
            q, k = self._normed("q_norm", q, gates), self._normed("k_norm", k, gates)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        # Transposed views: the output then has the layout of q, and flattening it below copies nothing.
        q, k, v = (t.to(v.dtype).transpose(1, 2) for t in (q, k, v))
        if gates.kv_of_query is not None:
            k, v = (t.index_select(1, gates.kv_of_query) for t in (k, v))
        scale, softcap = self.arch.attention_multiplier, self.arch.attention_softcap
        out_BHSE = self.function(q, k, v, self.window, scale, softcap)
        out = gated(out_BHSE.transpose(1, 2).flatten(2), self.out_proj, gates, "attn.out_proj")
        return out if self.post_norm is None else inner_norm(out, self.post_norm, gates, "attn.post_norm")

    def _normed(self, name: str, x_BSHE: Tensor, gates: LayerGates) -> Tensor:
        """The norm of q or k, over each head or over all of them together."""
        norm = getattr(self, name)
        if not self.arch.qk_norm_over_heads:
            return norm(x_BSHE)
        return inner_norm(x_BSHE.flatten(2), norm, gates, f"attn.{name}").view_as(x_BSHE)


class FusedAttention(Attention):
    """Attention whose q, k and v are one matrix of rows [q | k | v] head by head (GPT-NeoX)."""

    def make_projections(self, arch: Architecture, queries: int, keys: int, device) -> None:
        self.query_key_value = nn.Linear(arch.d_model, queries + 2 * keys, bias=arch.qkv_bias, device=device)

    def project(self, x_BSD: Tensor, gates: LayerGates) -> list[Tensor]:
        fused = gated(x_BSD, self.query_key_value, gates, "attn.query_key_value")
        by_head = fused.unflatten(-1, (-1, 3 * self.arch.head_dim))
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
        self.post_norm = make_norm(arch, arch.d_model, device) if arch.post_norms else None

    def forward(self, x_BSD: Tensor, gates: LayerGates) -> Tensor:
        """The block's contribution to the residual stream, [B, S, D]."""
        up = gated(x_BSD, self.up_proj, gates, "mlp.up_proj")
        if self.gate_proj is None:
            inner = self.activation(up)
        else:
            inner = self.activation(gated(x_BSD, self.gate_proj, gates, "mlp.gate_proj")) * up
        out = gated(inner, self.down_proj, gates, "mlp.down_proj")
        return out if self.post_norm is None else inner_norm(out, self.post_norm, gates, "mlp.post_norm")
