"""How many parameters and operations an architecture has, counted through the table of units.

L layers, D hidden, H query heads, K KV heads, E head dim, S sequence.
"""

import math
from collections.abc import Iterable, Mapping

from torch import Tensor

from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.units import (
    BLOCKS,
    GATES,
    Weight,
    drive,
    driven,
    gate_around,
    heads_by_group,
    is_grouped,
    owners,
    owns,
    weight_shapes,
    weight_table,
)


def parameters(arch: Architecture) -> int:
    """Parameters of a decoder, embeddings included."""
    outside = sum(math.prod(shape) for _, shape in weight_shapes(arch.resized(n_layers=1)))
    twice = sum(math.prod(shape) for _, shape in weight_shapes(arch.resized(n_layers=2)))
    return outside + (arch.n_layers - 1) * (twice - outside)


def embedding_parameters(arch: Architecture) -> int:
    """Parameters of the embedding and, unless tied, the output projection."""
    return arch.vocab_size * arch.d_model * (1 if arch.tie_embeddings else 2)


def matrix_parameters(arch: Architecture) -> int:
    """Parameters of all attention and MLP matrices, which masks can remove; without biases and norms."""
    return sum(arch.n_layers * _size(weight) for block in BLOCKS for weight in _matrices(arch, block))


def training_flops(arch: Architecture, sequences: int, length: int) -> int:
    """Floating point operations of a forward and backward pass over `sequences` of `length` tokens.

    Matrix products alone: 6 a parameter and token, and 12 S^2 H E a layer and sequence for attention,
    the causal half not deducted (the convention of PaLM, arXiv 2204.02311 appendix B).
    """
    held = matrix_parameters(arch) + arch.vocab_size * arch.d_model
    attention = 12 * arch.n_layers * arch.n_heads * arch.head_dim * length**2
    return sequences * (6 * held * length + attention)


def forward_flops(arch: Architecture, sequences: int, length: int) -> int:
    """Floating point operations of a forward pass alone: a third of `training_flops`."""
    return training_flops(arch, sequences, length) // 3


def prunable_parameters(kinds: Iterable[str], arch: Architecture) -> int:
    """Parameters of the matrices that units of `kinds` reach: attention, MLP or both (released code)."""
    reached = _reached(kinds, arch)
    return sum(arch.n_layers * _size(weight) for block in reached for weight in _matrices(arch, block))


def expected_parameters(keep: Mapping[str, Tensor], arch: Architecture) -> Tensor:
    """Expected number of surviving parameters among `prunable_parameters`; a scalar.

    Args:
        keep: keep probability of every unit by kind, in the shapes of `Kind.shape`. The gates of a unit and
            of the block around it are independent, so their probabilities multiply.
    """
    like = next(iter(keep.values()))
    gates = drive(keep)
    units = _open_units(gates, arch, like)
    ones = like.new_ones(arch.n_layers)
    count = like.new_zeros(())
    for block in _reached(keep, arch):
        entries = [_expected(weight, units) for weight in _matrices(arch, block)]
        count = count + (gates.get(BLOCKS[block], ones) * sum(entries)).sum()
    return count


def _expected(weight: Weight, units: Mapping[str, Tensor]) -> Tensor | float:
    """Entries of a matrix that are expected to stay, [L] or a scalar."""
    entries: Tensor | float = 1.0
    for axis in weight.axes:
        entries = entries * axis.each * (units[axis.owner].sum(-1) if axis.owner else axis.units)
    return entries


def _open_units(gates: Mapping[str, Tensor], arch: Architecture, like: Tensor) -> dict[str, Tensor]:
    """The chance of every unit to be open, by the kind that owns weights: [L, n] or [n]."""
    units = {
        name: gates[name] if name in gates else like.new_ones(()).expand(GATES[name].shape(arch))
        for name in owners(arch)
    }
    if is_grouped(arch):  # a query head is open only where its KV head is
        return units | {"head": heads_by_group(units["head"], units["kv_head"], arch).flatten(-2)}
    return units | {"kv_head": units["head"]} if "kv_head" in units else units


def _matrices(arch: Architecture, block: str) -> list[Weight]:
    """The matrices of one layer's attention (`attn`) or MLP (`mlp`)."""
    table = weight_table(arch)
    return [w for part, w in table.items() if part.startswith(f"{block}.") and w.columns is not None]


def _size(weight: Weight) -> int:
    return math.prod(axis.size for axis in weight.axes)


def _reached(kinds: Iterable[str], arch: Architecture) -> list[str]:
    """The blocks of a layer in which units of `kinds` own weights, or which they switch off."""
    gates = driven(kinds)
    touched = {
        gate_around(part)
        for part, weight in weight_table(arch).items()
        if any(owns(gate, weight) for gate in gates)
    }
    return [block for block, gate in BLOCKS.items() if gate in gates | touched]
