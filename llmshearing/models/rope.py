"""Rotary position embedding: frequencies and rotation.

B batch, S sequence, H heads, E head dim, R rotated part of it.

The frequency of pair i of R / 2 is theta^(-2 i / R); a scaling changes it:

- linear: divided by `factor` (positions are interpolated).
- dynamic: theta grows with the length beyond the trained one (NTK-aware).
- llama3: low frequencies divided by `factor`, high ones kept, those between interpolated.
- yarn: the same by the number of rotations, and attention is scaled (arXiv 2309.00071).
- longrope: divided by a factor of its own, one list of them up to the trained length and one beyond, and
  attention is scaled (arXiv 2402.13753).
"""

import math
from typing import Any

import torch
from torch import Tensor

from llmshearing.shapes.architecture import Architecture


def rope_tables(
    arch: Architecture, length: int, device: torch.device, local: bool = False
) -> tuple[Tensor, Tensor]:
    """cos and sin of positions 0..length-1, each [S, R/2] in fp32.

    Args:
        local: those of layers with a window, where these have a base of their own and no scaling.
    """
    if local:
        arch = arch.resized(rope_theta=arch.local_rope_theta, rope_scaling=None)
    frequencies, scale = rope_frequencies(arch, length, device)
    angles = torch.outer(torch.arange(length, device=device, dtype=torch.float32), frequencies)
    return angles.cos() * scale, angles.sin() * scale


def rotate(x_BSHE: Tensor, cos_SR: Tensor, sin_SR: Tensor) -> Tensor:
    """Rotate the first R of E dimensions of every head, pairing dimension i with i + R/2 (HF's layout)."""
    half = cos_SR.shape[-1]
    first, second, rest = x_BSHE.split([half, half, x_BSHE.shape[-1] - 2 * half], dim=-1)
    cos, sin = cos_SR[:, None], sin_SR[:, None]
    parts = [first * cos - second * sin, second * cos + first * sin]
    return torch.cat([*parts, rest] if rest.shape[-1] else parts, dim=-1)


def rope_frequencies(arch: Architecture, length: int, device: torch.device) -> tuple[Tensor, float]:
    """Radians a position of every pair, [R/2] in fp32, and the factor of cos and sin."""
    size = int(arch.head_dim * arch.rotary_pct)
    scaling = arch.rope_scaling or {"rope_type": "default"}
    kind = scaling["rope_type"]
    if kind == "dynamic":
        return _powers(_dynamic_base(arch, size, length, scaling["factor"]), size, device), 1.0
    plain = _powers(arch.rope_theta, size, device)
    if kind == "linear":
        return plain / scaling["factor"], 1.0
    if kind == "llama3":
        return llama3_frequencies(plain, scaling), 1.0
    if kind == "yarn":
        return _yarn(plain, arch, size, scaling)
    if kind == "longrope":
        return _longrope(plain, arch, length, scaling)
    return plain, 1.0


def _powers(base: float, size: int, device: torch.device) -> Tensor:
    """base^(-2 i / R) for i in 0..R/2-1."""
    return 1.0 / (base ** (torch.arange(0, size, 2, device=device, dtype=torch.float32) / size))


def _dynamic_base(arch: Architecture, size: int, length: int, factor: float) -> float:
    longest = max(length, arch.max_seq_len)
    growth = factor * longest / arch.max_seq_len - (factor - 1)
    return arch.rope_theta * growth ** (size / (size - 2))


def llama3_frequencies(plain: Tensor, scaling: dict[str, Any]) -> Tensor:
    """`plain` [R/2] scaled by the number of rotations within the trained length: few, many, or between."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    rotations = scaling["original_max_position_embeddings"] * plain / (2 * math.pi)
    smooth = ((rotations - low) / (high - low)).clamp(0, 1)
    return (1 - smooth) * plain / scaling["factor"] + smooth * plain


def _yarn(plain: Tensor, arch: Architecture, size: int, scaling: dict[str, Any]) -> tuple[Tensor, float]:
    trained, factor = scaling.get("original_max_position_embeddings"), scaling["factor"]
    trained = trained or arch.max_seq_len

    def pair(rotations: float) -> float:
        """The pair that makes so many rotations within the trained length."""
        return size * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(arch.rope_theta))

    first, last = pair(scaling.get("beta_fast") or 32), pair(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    pairs = torch.arange(size // 2, device=plain.device, dtype=torch.float32)
    interpolated = ((pairs - first) / (last - first if last != first else 1e-3)).clamp(0, 1)
    frequencies = plain / factor * interpolated + plain * (1 - interpolated)
    return frequencies, _yarn_attention(factor, scaling)


def _longrope(
    plain: Tensor, arch: Architecture, length: int, scaling: dict[str, Any]
) -> tuple[Tensor, float]:
    """Frequencies, and sqrt(1 + ln(s) / ln(trained)) for a model of s times the trained length."""
    trained = scaling["original_max_position_embeddings"]
    factors = plain.new_tensor(scaling["long_factor" if length > trained else "short_factor"])
    grown = arch.max_seq_len / trained
    return plain / factors, math.sqrt(1 + math.log(grown) / math.log(trained)) if grown > 1 else 1.0


def _yarn_attention(factor: float, scaling: dict[str, Any]) -> float:
    """The factor of cos and sin: 0.1 ln(factor) + 1, unless the config names it or its parts."""

    def grown(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if scaling.get("attention_factor") is not None:
        return scaling["attention_factor"]
    above, below = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return grown(above) / grown(below) if above and below else grown(1.0)
