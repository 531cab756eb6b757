"""How much a decoder block keeps for its backward pass, found by running it on tensors without storage."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from llmshearing.models.decoder import Block
from llmshearing.models.rope import rope_tables
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.layer_gates import LayerGates
from llmshearing.shapes.units import GATES, weight_table

_PROBE = 128  # tokens; bytes grow linearly with them, so two lengths tell everything


@dataclass(frozen=True)
class SavedBytes:
    """What one block keeps between forward and backward, its own parameters left out."""

    per_token: float
    """Bytes for each token of a microbatch."""
    fixed: float
    """Bytes whatever the microbatch, such as casts of weights."""

    def of(self, tokens: int) -> float:
        """Bytes for a microbatch of so many tokens."""
        return self.per_token * tokens + self.fixed


def saved_bytes(arch: Architecture, weights: torch.dtype, compute: torch.dtype, masked: bool) -> SavedBytes:
    """What one block of `arch` keeps.

    Args:
        weights: type of the parameters while the block runs.
        compute: type that autocast computes matrix products in; fp32: no autocast.
        masked: with masks of every kind, as in a pruning run.
    """
    short, long = (_kept(arch, tokens, weights, compute, masked) for tokens in (_PROBE, 2 * _PROBE))
    return SavedBytes(per_token=(long - short) / _PROBE, fixed=max(0, 2 * short - long))


def _kept(arch: Architecture, tokens: int, weights: torch.dtype, compute: torch.dtype, masked: bool) -> int:
    """Bytes that a forward pass over `tokens` tokens keeps."""
    with FakeTensorMode():
        block = Block(arch, "sdpa")
        for parameter in block.parameters():  # Module.to cannot exchange tensors without storage
            parameter.data = parameter.data.to(weights)
        own = {parameter.untyped_storage()._cdata for parameter in block.parameters()}
        kept: dict[int, torch.UntypedStorage] = {}  # holding them keeps their addresses from being reused

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                kept[storage._cdata] = storage
            return tensor

        x = torch.empty(1, tokens, arch.d_model, dtype=weights, requires_grad=True)
        rope = rope_tables(arch, tokens, x.device)
        gates = LayerGates(weight_table(arch), _all_gates(arch) if masked else {})
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=compute != torch.float32)
        with autocast, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            block(x, rope, gates)
        return sum(storage.nbytes() for storage in kept.values())


def _all_gates(arch: Architecture) -> dict[str, Tensor]:
    """Gates of every kind for one layer."""
    shapes = {name: gate.shape(arch)[gate.per_layer :] for name, gate in GATES.items()}
    return {name: torch.empty(shape, requires_grad=True) for name, shape in shapes.items()}
