"""How many parameters and operations an architecture has, counted through the table of units.

L layers, D hidden, H query heads, K KV heads, E head dim, S sequence.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.executed import EVERYTHING, Executed
from llmshearing.shapes.units import (
    BLOCKS,
    GATES,
    KINDS,
    Weight,
    drive,
    driven,
    gate_around,
    heads_by_group,
    is_grouped,
    is_in_layer,
    owners,
    owns,
    weight_table,
)


def parameters(arch: Architecture) -> int:
    """Parameters of a decoder, embeddings included."""
    return sum(
        (_size(weight) + weight.bias * weight.rows.size) * (arch.n_layers if is_in_layer(part) else 1)
        for part, weight in weight_table(arch).items()
    )


def embedding_parameters(arch: Architecture) -> int:
    """Parameters of the embedding and, unless tied, the output projection."""
    return arch.vocab_size * arch.d_model * (1 if arch.tie_embeddings else 2)


def matrix_parameters(arch: Architecture) -> int:
    """Parameters of all attention and MLP matrices, which masks can remove; without biases and norms."""
    return sum(arch.n_layers * _size(weight) for block in BLOCKS for weight in _matrices(arch, block))


def training_flops(arch: Architecture, sequences: int, length: int, executed: Executed = EVERYTHING) -> int:
    """Floating point operations of a forward and backward pass over `sequences` of `length` tokens.

    Matrix products alone: 6 a parameter and token, and 12 S^2 H E a layer and sequence for attention,
    the causal half not deducted (the convention of PaLM, arXiv 2204.02311 appendix B). Only what is executed
    counts, closed units that are computed with included.
    """
    table = weight_table(arch)
    hidden = table["wte"].columns
    assert hidden is not None
    held, heads = arch.vocab_size * executed.count(hidden, None), 0
    matrices = {block: _matrices(arch, block) for block in BLOCKS}
    for layer in range(arch.n_layers):
        for block in BLOCKS:
            if not executed.skips(block, layer):
                held += sum(
                    math.prod(executed.count(axis, layer) for axis in weight.axes)
                    for weight in matrices[block]
                )
        if not executed.skips("attn", layer):
            columns = table["attn.out_proj"].columns
            assert columns is not None
            heads += executed.count(columns, layer)
    return sequences * (6 * held * length + 12 * heads * length**2)


def expected_flops(arch: Architecture, shares: Mapping[str, float], sequences: int, length: int) -> float:
    """`training_flops` where of every kind a share of the units is open, in expectation.

    Args:
        shares: by kind; a kind that is missing is open.
    """
    if not shares:
        return training_flops(arch, sequences, length)
    keep = {kind: torch.full(KINDS[kind].shape(arch), share).double() for kind, share in shares.items()}
    gates = {gate: shares[kind] for kind in shares for gate in KINDS[kind].gates}
    untouched = matrix_parameters(arch) - prunable_parameters(shares, arch)
    held = untouched + float(expected_parameters(keep, arch))
    held += arch.vocab_size * arch.d_model * gates.get("hidden", 1.0)
    heads = arch.n_layers * arch.n_heads * arch.head_dim
    for gate in ("head", "kv_head", "attention"):
        heads *= gates.get(gate, 1.0)
    return sequences * (6 * held * length + 12 * heads * length**2)


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
