"""Rotary position embedding: frequencies by `transformers`, rotation here.

B batch, S sequence, H heads, E head dim, R rotated part of it.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llmshearing.shapes.architecture import Architecture


def rope_tables(arch: Architecture, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin of positions 0..length-1, each [S, R/2] in fp32."""
    kind = arch.rope_scaling["rope_type"] if arch.rope_scaling else "default"
    seq_len = max(length, arch.max_seq_len) if kind == "dynamic" else None
    frequencies, scale = ROPE_INIT_FUNCTIONS[kind](_rope_config(arch), device, seq_len=seq_len)
    angles = torch.outer(torch.arange(length, device=device, dtype=torch.float32), frequencies.float())
    return angles.cos() * scale, angles.sin() * scale


def rotate(x_BSHE: Tensor, cos_SR: Tensor, sin_SR: Tensor) -> Tensor:
    """Rotate the first R of E dimensions of every head, pairing dimension i with i + R/2 (HF's layout)."""
    half = cos_SR.shape[-1]
    first, second, rest = x_BSHE.split([half, half, x_BSHE.shape[-1] - 2 * half], dim=-1)
    cos, sin = cos_SR[:, None], sin_SR[:, None]
    parts = [first * cos - second * sin, second * cos + first * sin]
    return torch.cat([*parts, rest] if rest.shape[-1] else parts, dim=-1)


def _rope_config(arch: Architecture) -> PretrainedConfig:
    scaling: dict[str, Any] | None = arch.rope_scaling
    return PretrainedConfig(
        hidden_size=arch.d_model,
        num_attention_heads=arch.n_heads,
        head_dim=arch.head_dim,
        max_position_embeddings=arch.max_seq_len,
        rope_theta=arch.rope_theta,
        rope_scaling=scaling,
        partial_rotary_factor=arch.rotary_pct,
    )
