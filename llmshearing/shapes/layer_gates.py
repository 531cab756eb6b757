"""The gates of one layer, read through the table of units."""

from collections.abc import Mapping

from torch import Tensor

from llmshearing.shapes.units import GATES, Axis, Weight


class LayerGates:
    """The gates of one layer, or of the weights outside of layers, read through the table.

    Where not all units are executed (`llmshearing.shapes.executed`), "rows" and "columns" are the executed
    ones. Like `Gates` it is no dataclass, whose tensors FSDP2 would cast.

    Attributes:
        table: the weights of the architecture.
        gates: [n] or scalar; a missing gate is open. Those that all layers share are of the executed units.
        indices: the executed rows or columns, by the kind that owns them and how many a unit owns; a missing
            entry stands for all.
        skipped: the blocks (`BLOCKS`) that are not executed.
        kv_of_query: where KV heads have unequal numbers of query heads, for each query head the position of
            its KV head.
    """

    def __init__(
        self,
        table: Mapping[str, Weight],
        gates: Mapping[str, Tensor],
        indices: Mapping[tuple[str, int], Tensor] | None = None,
        skipped: frozenset[str] = frozenset(),
        kv_of_query: Tensor | None = None,
    ) -> None:
        self.table = table
        self.gates = gates
        self.indices = indices or {}
        self.skipped = skipped
        self.kv_of_query = kv_of_query

    def rows(self, part: str) -> Tensor | None:
        """What scales the rows of weight `part`, [rows] or a scalar; None for nothing."""
        return self._factor(self.table[part].rows)

    def columns(self, part: str) -> Tensor | None:
        """What scales the columns of weight `part`, [columns] or a scalar; None for nothing."""
        columns = self.table[part].columns
        return None if columns is None else self._factor(columns)

    def owner(self, part: str) -> Tensor | None:
        """The gates of the units that own the rows of weight `part`; None when they are all open."""
        rows = self.table[part].rows
        return None if rows.owner is None or rows.owner not in self.gates else self._of(rows, rows.owner)

    def executed_rows(self, part: str) -> Tensor | None:
        """Indices of the rows of weight `part` that are executed; None for all."""
        return self._index(self.table[part].rows)

    def executed_columns(self, part: str) -> Tensor | None:
        """Indices of the columns of weight `part` that are executed; None for all."""
        columns = self.table[part].columns
        return None if columns is None else self._index(columns)

    def open_rows(self, part: str) -> Tensor | None:
        """Whether each row of weight `part` belongs to an open unit, [rows]; None when all do.

        A query head is open where its KV head is too, and a KV head where a query head that it serves is.
        """
        rows = self.table[part].rows
        if rows.owner in ("head", "kv_head"):
            opened = self._open_heads(rows.owner)
            return None if opened is None else self._spread(rows, opened)
        gate = self.owner(part)
        return None if gate is None else gate != 0

    def _open_heads(self, owner: str) -> Tensor | None:
        heads, groups = self.gates.get("head"), self.gates.get("kv_head")
        if heads is None and groups is None:
            return None
        count, served = (self.table[part].rows.units for part in ("attn.wk", "attn.wq"))
        like = heads if heads is not None else groups
        assert like is not None
        heads = like.new_ones(served) if heads is None else heads
        opened = (heads != 0).unflatten(0, (count, -1))
        if groups is not None:
            opened = opened & (groups != 0)[:, None]
        return opened.flatten() if owner == "head" else opened.any(-1)

    def _factor(self, axis: Axis) -> Tensor | None:
        factor = None
        for name in axis.gates:
            if name in self.gates:
                gate = self._of(axis, name)
                factor = gate if factor is None else factor * gate
        return factor

    def _of(self, axis: Axis, name: str) -> Tensor:
        """Gates as factors of the executed rows or columns."""
        shared = not GATES[name].per_layer and self._index(axis) is not None
        return self.gates[name] if shared else self._spread(axis, self.gates[name])

    def _spread(self, axis: Axis, values: Tensor) -> Tensor:
        """A number, or one for every unit, as one for each of the executed rows or columns."""
        if values.dim() and len(values) != axis.size:
            values = values.repeat_interleave(axis.size // len(values))
        index = self._index(axis)
        return values if index is None or not values.dim() else values.index_select(0, index)

    def _index(self, axis: Axis) -> Tensor | None:
        return None if axis.owner is None else self.indices.get((axis.owner, axis.each))


def layer_gates(table: Mapping[str, Weight], gates: Mapping[str, Tensor], layer: int | None) -> LayerGates:
    """The gates of layer `layer`, or (None) of the weights outside of layers."""
    shared = {name: gate for name, gate in gates.items() if not GATES[name].per_layer}
    if layer is None:
        return LayerGates(table, shared)
    own = {name: gate[layer] for name, gate in gates.items() if GATES[name].per_layer}
    return LayerGates(table, shared | own)
