"""Which units a forward pass executes: those whose gate is not 0, read from the device once.

A closed unit adds nothing to the output and gets no gradient, so a forward and backward pass without it
computes the same. A block is skipped where its gate is 0. Some closed units are executed nevertheless, and
multiplied by their 0: all of a row where few are closed, since leaving them out would cost more than it
saves, and as many as fill up the multiples that matrix units like. The export (`llmshearing.pruning.cut`)
takes out the same units; its layers are equally wide, while here every layer has a width of its own.

L layers, H query heads, K KV heads, G = H / K.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.layer_gates import LayerGates, layer_gates
from llmshearing.shapes.units import (
    BLOCKS,
    GATES,
    Axis,
    Gates,
    Weight,
    block_of,
    heads_by_group,
    owners,
    weight_table,
)

FEW = 1 / 16  # a row of which at most this part is closed is executed whole
MULTIPLES = {"cpu": 16, "cuda": 64}  # to which numbers of units, but of heads, are rounded up
Place = tuple[int | None, str]  # a layer, or None outside of layers, and the kind that owns weights there
Choice = dict[Place, Tensor]  # ascending indices of executed units, on the host; a missing row is whole


@dataclass(frozen=True)
class Executed:
    """What a forward pass executes.

    Attributes:
        units: the executed units of every row that is not executed whole.
        skipped: for every layer the parts (`BLOCKS`) that are skipped.
        indices: their rows or columns in weights, by place and by how many a unit owns, on the device.
        kv_of_query: of layers whose groups of query heads differ in size, for each executed query head the
            position of its KV head among the executed ones, on the device.
    """

    units: Choice = field(default_factory=dict)
    skipped: Sequence[frozenset[str]] = ()
    indices: Mapping[tuple[Place, int], Tensor] = field(default_factory=dict)
    kv_of_query: Mapping[int, Tensor] = field(default_factory=dict)

    def count(self, axis: Axis, layer: int | None) -> int:
        """How many rows or columns of an axis are executed in a layer."""
        units = self.units.get(_place(axis.owner, layer)) if axis.owner else None
        return axis.size if units is None else len(units) * axis.each

    def skips(self, block: str, layer: int) -> bool:
        """Whether a block of a layer is not executed."""
        return bool(self.skipped) and block in self.skipped[layer]

    def shared(self, gates: Gates) -> Gates:
        """`gates`, of which those that all layers share are reduced to the executed units, once for all."""
        found = Gates(gates)
        for name, gate in gates.items():
            index = self.indices.get(((None, name), 1))
            if index is not None:
                found[name] = gate.index_select(0, index)
        return found

    def layer_gates(
        self, table: Mapping[str, Weight], gates: Mapping[str, Tensor], layer: int | None
    ) -> LayerGates:
        """The gates of layer `layer`, or (None) of the weights outside of layers, of executed units.

        Args:
            gates: what `shared` returned.
        """
        read = layer_gates(table, gates, layer)
        if not self.units and not self.skipped:
            return read
        indices = {
            (at[1], each): index for (at, each), index in self.indices.items() if at[0] in (None, layer)
        }
        if layer is None:
            return LayerGates(table, read.gates, indices)
        return LayerGates(table, read.gates, indices, self.skipped[layer], self.kv_of_query.get(layer))


EVERYTHING = Executed()


def executed_units(gates: Mapping[str, Tensor], arch: Architecture) -> Executed:
    """What a pass under `gates` executes.

    Args:
        gates: by name, in the shapes of `GATES`; a missing gate is open.
    """
    if not gates:
        return EVERYTHING
    device = next(iter(gates.values())).device
    is_open = _read(gates, arch)
    skipped = [
        frozenset(block for block, gate in BLOCKS.items() if not is_open[gate][layer])
        for layer in range(arch.n_layers)
    ]
    units = _chosen(is_open, skipped, arch, MULTIPLES.get(device.type, 1))
    if not units and not any(skipped):
        return EVERYTHING
    rows, queries = _indices(units, arch), _uneven_groups(units, arch)
    placed = _to_device([*rows.values(), *queries.values()], device)
    indices = dict(zip(rows, placed, strict=False))
    return Executed(units, skipped, indices, dict(zip(queries, placed[len(rows) :], strict=True)))


def _read(gates: Mapping[str, Tensor], arch: Architecture) -> dict[str, Tensor]:
    """Whether each gate is open; a head is only where its KV head is. One copy from the device."""
    flat = torch.cat([(gate.detach() != 0).flatten() for gate in gates.values()]).cpu()
    parts = flat.split([gate.numel() for gate in gates.values()])
    is_open = {name: torch.ones(gate.shape(arch), dtype=torch.bool) for name, gate in GATES.items()}
    for (name, gate), part in zip(gates.items(), parts, strict=True):
        is_open[name] = part.view(gate.shape)
    is_open["head"] = heads_by_group(is_open["head"], is_open["kv_head"], arch).flatten(1)
    return is_open


def _chosen(
    is_open: Mapping[str, Tensor], skipped: Sequence[frozenset[str]], arch: Architecture, multiple: int
) -> Choice:
    """The units of every row that is not executed whole."""
    units: Choice = {}
    for kind in sorted(owners(arch) - {"kv_head"}):
        block = block_of(kind, arch)
        for layer in range(arch.n_layers) if GATES[kind].per_layer else [None]:
            if layer is not None and any(BLOCKS[part] == block for part in skipped[layer]):
                continue
            row = is_open[kind] if layer is None else is_open[kind][layer]
            if (chosen := _choice(row, 1 if kind == "head" else multiple)) is None:
                continue
            units[layer, kind] = chosen
            if kind == "head":  # a KV head is executed where one of its query heads is
                units[layer, "kv_head"] = torch.unique(chosen // arch.group_size)
    return units


def _choice(is_open: Tensor, multiple: int) -> Tensor | None:
    """The units of one row to execute, at least one; None for all."""
    size, count = len(is_open), max(1, int(is_open.sum()))
    count = -(-count // multiple) * multiple
    if size - count <= FEW * size:
        return None
    return torch.argsort(~is_open, stable=True)[:count].sort().values


def _indices(units: Choice, arch: Architecture) -> dict[tuple[Place, int], Tensor]:
    """Rows or columns of the chosen units, for every number of them that a unit owns in some weight."""
    axes = {
        (axis.owner, axis.each): axis
        for weight in weight_table(arch).values()
        for axis in weight.axes
        if axis.owner is not None
    }
    return {
        (at, each): axis.places(chosen)
        for at, chosen in units.items()
        for (owner, each), axis in axes.items()
        if owner == at[1]
    }


def _uneven_groups(units: Choice, arch: Architecture) -> dict[int, Tensor]:
    """For layers where executed KV heads have unequal numbers of query heads: the KV head's position."""
    found = {}
    for (layer, kind), chosen in units.items():
        if kind == "head" and layer is not None:
            _, positions, sizes = torch.unique(
                chosen // arch.group_size, return_inverse=True, return_counts=True
            )
            if sizes.min() != sizes.max():
                found[layer] = positions
    return found


def _to_device(indices: Sequence[Tensor], device: torch.device) -> Sequence[Tensor]:
    """The indices on the device, in one copy."""
    if not indices:
        return ()
    flat = torch.cat(list(indices))
    if device.type == "cuda":
        flat = flat.pin_memory().to(device, non_blocking=True)
    return flat.split([len(index) for index in indices])


def _place(owner: str, layer: int | None) -> Place:
    return (layer if GATES[owner].per_layer else None, owner)
