"""Causal attention in three equivalent implementations.

B batch, S sequence, H query heads, K KV heads, E head dim, W window.

All take the same arguments: `window`, tokens a position sees, itself included (None: all before it); `scale`,
what q k^T is multiplied by (None: 1 / sqrt(E)); `softcap`, the c of c tanh(scores / c) (None: no cap).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

AttentionFunction = Callable[[Tensor, Tensor, Tensor, int | None, float | None, float | None], Tensor]


def sdpa(
    q_BHSE: Tensor,
    k_BKSE: Tensor,
    v_BKSE: Tensor,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """torch's scaled_dot_product_attention, causal; output [B, H, S, E].

    KV heads are repeated: with enable_gqa=True torch takes a kernel on CPUs that builds the scores [S, S].
    Scores that are capped are built by the definition: that function cannot cap them.
    """
    if softcap is not None:
        return eager(q_BHSE, k_BKSE, v_BKSE, window, scale, softcap)
    groups = q_BHSE.shape[1] // k_BKSE.shape[1]
    if groups > 1:
        k_BKSE = k_BKSE.repeat_interleave(groups, dim=1)
        v_BKSE = v_BKSE.repeat_interleave(groups, dim=1)
    if window is None or q_BHSE.shape[2] <= window:
        return F.scaled_dot_product_attention(q_BHSE, k_BKSE, v_BKSE, is_causal=True, scale=scale)
    return _windowed(q_BHSE, k_BKSE, v_BKSE, window, scale)


def _windowed(q: Tensor, k: Tensor, v: Tensor, window: int, scale: float | None) -> Tensor:
    """Causal attention within `window`: blocks of W queries over their own and the block before's keys."""
    length = q.shape[2]
    q, k, v = (F.pad(x, (0, 0, 0, -length % window)) for x in (q, k, v))
    rows = torch.arange(window, device=q.device)[:, None]
    columns = torch.arange(2 * window, device=q.device)[None, :]
    visible = (columns > rows) & (columns <= rows + window)
    outputs = [
        F.scaled_dot_product_attention(
            q[:, :, start : start + window],
            k[:, :, max(0, start - window) : start + window],
            v[:, :, max(0, start - window) : start + window],
            attn_mask=visible if start else visible[:, window:],
            scale=scale,
        )
        for start in range(0, length, window)
    ]
    return torch.cat(outputs, dim=2)[:, :, :length]


def eager(
    q_BHSE: Tensor,
    k_BKSE: Tensor,
    v_BKSE: Tensor,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """The definition, softmax(cap(scale q k^T)) v, to check the others against; output [B, H, S, E]."""
    groups = q_BHSE.shape[1] // k_BKSE.shape[1]
    k_BHSE, v_BHSE = k_BKSE.repeat_interleave(groups, dim=1), v_BKSE.repeat_interleave(groups, dim=1)
    scores = q_BHSE @ k_BHSE.transpose(-1, -2) * (q_BHSE.shape[-1] ** -0.5 if scale is None else scale)
    scores = soft_capped(scores, softcap)
    position = torch.arange(q_BHSE.shape[2], device=q_BHSE.device)
    distance = position[:, None] - position[None, :]
    hidden = (distance < 0) | (distance >= (window or len(position)))
    return (
        scores.masked_fill(hidden, float("-inf")).softmax(-1, dtype=torch.float32).to(q_BHSE.dtype) @ v_BHSE
    )


def flash(
    q_BHSE: Tensor,
    k_BKSE: Tensor,
    v_BKSE: Tensor,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """flash-attn 2 (CUDA, 16-bit); output [B, H, S, E]."""
    from flash_attn import flash_attn_func  # type: ignore[import-not-found]

    q, k, v = (x.transpose(1, 2) for x in (q_BHSE, k_BKSE, v_BKSE))
    if q.dtype == torch.float32:  # outside autocast; flash-attn has 16-bit kernels only
        q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
    look_back = (window - 1, 0) if window else (-1, -1)
    options = {"causal": True, "window_size": look_back, "softmax_scale": scale, "softcap": softcap or 0.0}
    return flash_attn_func(q, k, v, **options).transpose(1, 2)


def soft_capped(x: Tensor, cap: float | None) -> Tensor:
    """cap tanh(x / cap), in place of which x is returned where there is no cap."""
    return x if cap is None else torch.tanh(x / cap) * cap


def attention_function(name: str) -> AttentionFunction:
    """The implementation called `name`: sdpa, flash or eager.

    Raises:
        ValueError: for an unknown name.
        ImportError: for flash without the package flash-attn, with the line that installs it.
    """
    known: dict[str, AttentionFunction] = {"sdpa": sdpa, "flash": flash, "eager": eager}
    if name not in known:
        raise ValueError(f"model.attn_impl is {name!r}; expected one of {', '.join(known)}.")
    if name == "flash":
        try:
            import flash_attn  # type: ignore[import-not-found]  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "model.attn_impl is flash, but the package flash-attn is not installed; run "
                "`pip install flash-attn --no-build-isolation` or set model.attn_impl=sdpa."
            ) from error
    return known[name]
