"""The dimensions that DimCHOP chooses among, and which entries of which weights belong to each.

Two ways with the same methods: `Units` of the table, whose weights go together and make a smaller shape, and
the `Columns` of each matrix, chosen within it, whose shape stays (Just CHOP section 3.2).

O outputs, I inputs, n dimensions that compete with each other.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from llmshearing.pruning.cut import split_layer
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.units import (
    KINDS,
    Axis,
    gate_around,
    is_grouped,
    kept_size,
    row_size,
    rows,
    weight_shapes,
    weight_table,
)


@dataclass(frozen=True)
class Units:
    """The units of `kinds`; a closed one stays closed.

    The score of a unit is that of all that is removed with it: with a KV head go the query heads that it
    serves, and with multi-head attention a head's own KV head goes with it.
    """

    source: Architecture
    target: Architecture
    kinds: tuple[str, ...]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of the gates under each name: those of `Kind.shape` by kind."""
        return {kind: KINDS[kind].shape(self.source) for kind in self.kinds}

    def sizes(self, name: str) -> tuple[int, int]:
        """Dimensions in a row of the gates `name`, and how many of them stay."""
        return row_size(name, self.source), kept_size(name, self.source, self.target)

    def by_row(self, name: str, values: Tensor) -> Tensor:
        """One number a dimension as [..., n]."""
        return rows(name, values, self.source)

    def scored(self) -> dict[str, tuple[int, ...]]:
        """Names, in a state dict of the decoder, and shapes of the weights that belong to dimensions."""
        table = weight_table(self.source)
        found = {}
        for name, shape in weight_shapes(self.source):
            axes = table[split_layer(name)[1].rpartition(".")[0]].axes[: len(shape)]
            if any(kind in self.kinds for axis in axes for kind in self._removing(axis)):
                found[name] = shape
        return found

    def add(self, sums: Mapping[str, Tensor], name: str, values: Tensor, first_row: int = 0) -> None:
        """Add up numbers, one an entry of a weight, over the dimensions that its entries belong to.

        Args:
            sums: [units of the model, flat] by kind, in fp64.
            name: of the weight.
            values: [O, I], or [O] of a norm or bias; where the weight is sharded, some neighbouring rows.
            first_row: the first of them.
        """
        layer, part = split_layer(name)
        for dim, axis in enumerate(weight_table(self.source)[part.rpartition(".")[0]].axes[: values.dim()]):
            kinds = [kind for kind in self._removing(axis) if kind in sums]
            if not kinds:
                continue
            here = values.double() if values.dim() == 1 else values.sum(1 - dim, dtype=torch.float64)
            if dim == 0:
                whole = here.new_zeros(axis.size)
                whole[first_row : first_row + len(here)] = here
                here = whole
            for kind in kinds:
                units = KINDS[kind].shape(self.source)[-1]
                at = sums[kind].view(-1, units)[0 if layer is None or kind == "hidden" else layer]
                at += here.view(units, -1).sum(1)

    def _removing(self, axis: Axis) -> tuple[str, ...]:
        """The kinds with whose units rows or columns of an axis are removed."""
        if axis.owner in ("head", "kv_head"):
            if not is_grouped(self.source):
                return ("head",)
            return ("kv_head",) if axis.owner == "kv_head" else ("head", "kv_head")
        return () if axis.owner is None else (axis.owner,)


@dataclass(frozen=True)
class Columns:
    """The columns of each matrix in a layer, of which a part `share` is set to 0; they may come back."""

    source: Architecture
    share: float

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of the gates under each name: [I] by matrix."""
        return {key(name): shape[1:] for name, shape in self.scored().items()}

    def sizes(self, name: str) -> tuple[int, int]:
        """Columns of a matrix, and how many of them stay."""
        (size,) = self.shapes()[name]
        return size, size - round(self.share * size)

    def by_row(self, name: str, values: Tensor) -> Tensor:
        """The columns of a matrix compete with each other: [I]."""
        return values

    def scored(self) -> dict[str, tuple[int, ...]]:
        """Names, in a state dict of the decoder, and shapes of the matrices."""
        return {
            name: shape
            for name, shape in weight_shapes(self.source)
            if len(shape) == 2 and gate_around(split_layer(name)[1])
        }

    def add(self, sums: Mapping[str, Tensor], name: str, values: Tensor, first_row: int = 0) -> None:
        """Add up numbers, one an entry of a matrix, over each column."""
        sums[key(name)].add_(values.sum(0, dtype=torch.float64))


def key(name: str) -> str:
    """The name of a weight as that of a module."""
    return name.removesuffix(".weight").replace(".", "_")
