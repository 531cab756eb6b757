"""Multiplies gates into weights and removes closed units: pure functions of state dicts.

The table of units (`llmshearing.shapes.units`) is also that of the masked forward pass, so the smaller model
computes what the masked one did, soft gates included.

L layers, D hidden, H query heads, K KV heads, F intermediate; a prime marks the sizes that remain.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.key_map import PREFIX
from llmshearing.shapes.layer_gates import LayerGates, layer_gates
from llmshearing.shapes.units import (
    GATES,
    KINDS,
    Axis,
    Weight,
    block_of,
    heads_by_group,
    owners,
    weight_table,
)


@dataclass(frozen=True)
class Survivors:
    """What remains, as ascending indices.

    Attributes:
        layers: [L'].
        units: by the kind that owns weights: hidden [D'], and for each of these layers head [L', H'],
            kv_head [L', K'] and intermediate [L', F'].
    """

    layers: list[int]
    units: dict[str, Tensor]

    def of(self, axis: Axis, position: int | None) -> Tensor | None:
        """Indices of an axis that remain in the layer that becomes layer `position`; None: all of them."""
        if axis.owner is None:
            return None
        units = self.units[axis.owner]
        return axis.places(units if units.dim() == 1 else units[position])


def cut(
    weights: Mapping[str, Tensor], gates: Mapping[str, Tensor], arch: Architecture
) -> tuple[dict[str, Tensor], Architecture]:
    """The smaller model that computes what `arch` with these gates does.

    A unit is removed when its gate is 0, a layer when the gates of both its blocks are. Layers of an HF model
    are equally wide: each keeps as many units as the widest layer, closed ones as zeros.

    Args:
        weights: by our names; parameters of the method are ignored.
        gates: by name, in the shapes of `GATES`; a missing gate is open.

    Returns:
        The weights in their old types, multiplied in fp32, with layers renumbered; and their architecture.

    Raises:
        ValueError: when no layer or no hidden dimension remains.
    """
    gates = {name: gate.detach().cpu().float() for name, gate in gates.items()}
    stay = survivors(gates, arch)
    table = weight_table(arch)
    positions: dict[int | None, int | None] = {None: None}
    positions |= {layer: position for position, layer in enumerate(stay.layers)}
    read = {layer: layer_gates(table, gates, layer) for layer in positions}
    sizes = {KINDS[kind].target_key: units.shape[-1] for kind, units in stay.units.items()}
    smaller = arch.of_layers(stay.layers).resized(**sizes)
    result = {}
    for name, weight in weights.items():
        if not name.startswith(PREFIX):
            continue
        layer, part = split_layer(name.removeprefix(PREFIX))
        if layer in positions:
            position, module = positions[layer], part.rpartition(".")[0]
            keep = [stay.of(axis, position) for axis in table[module].axes]
            scales = (read[layer].rows(module), read[layer].columns(module))
            scales = (_product(scales[0], _evened(module, table, read[layer], keep[0])), scales[1])
            scales = _rescaled(module, scales, arch, smaller)
            new_name = part if position is None else f"blocks.{position}.{part}"
            result[PREFIX + new_name] = _cut(weight, keep, scales, table[module].offset)
    return result, smaller


def split_layer(name: str) -> tuple[int | None, str]:
    """`blocks.3.attn.wq.weight` as (3, `attn.wq.weight`); a name outside of layers with None."""
    if not name.startswith("blocks."):
        return None, name
    _, layer, part = name.split(".", 2)
    return int(layer), part


def _cut(
    weight: Tensor, keep: Sequence[Tensor | None], scales: Sequence[Tensor | None], offset: float
) -> Tensor:
    """`weight` with its axes cut and, `offset` added, scaled, the products in fp32; a bias has rows alone."""
    dtype = weight.dtype
    for dim, (indices, scale) in enumerate(zip(keep[: weight.dim()], scales, strict=False)):
        if indices is not None:
            weight = weight.index_select(dim, indices)
            scale = scale[indices] if scale is not None and scale.dim() else scale
        if scale is not None:
            scale = scale.reshape(-1, *[1] * (weight.dim() - 1 - dim))
            weight = (weight.float() + offset) * scale - offset if offset else weight.float() * scale
    return weight.to(dtype)


def _evened(part: str, table: Mapping[str, Weight], gates: LayerGates, keep: Tensor | None) -> Tensor | None:
    """What makes up for closed rows that a layer keeps, as wide as the widest, before a norm counts rows.

    With n of n' kept rows open, sqrt(n' / n) times the open rows has the mean square over n' rows that they
    alone have over n; the norm's weight takes the factor out again.

    Returns:
        The factor of the rows of weight `part`, [rows] or a scalar; None for nothing.
    """
    normed = {weight.over for weight in table.values()}
    before = part if part in normed else table[part].over
    opened = None if before is None else gates.open_rows(before)
    if opened is None or keep is None:
        return None
    count = torch.count_nonzero(opened[keep])
    if count == len(keep):
        return None
    factor = torch.sqrt(len(keep) / count.clamp(min=1).float())
    return opened * factor if part == before else 1 / factor


def _rescaled(
    part: str, scales: tuple[Tensor | None, Tensor | None], arch: Architecture, smaller: Architecture
) -> tuple[Tensor | None, Tensor | None]:
    """`scales` with what keeps the embedding where the smaller model multiplies it by another number.

    A head that is the embedding takes the last norm's weight to undo that.
    """
    ratio = arch.embedding_scale / smaller.embedding_scale
    if ratio == 1 or part not in ("wte", "ln_f"):
        return scales
    if part == "wte":
        return scales[0], _product(scales[1], torch.tensor(ratio))
    return (_product(scales[0], torch.tensor(1 / ratio)), scales[1]) if arch.tie_embeddings else scales


def _product(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first * second


def survivors(gates: Mapping[str, Tensor], arch: Architecture) -> Survivors:
    """What remains under `gates`: KV heads with any open query head, and as many query heads in each.

    Raises:
        ValueError: when no layer or no hidden dimension remains.
    """
    full = {name: gates.get(name, torch.ones(gate.shape(arch))) for name, gate in GATES.items()}
    layers = (full["attention"] + full["mlp"]).nonzero().flatten().tolist()
    units = {}
    for kind in owners(arch):
        block = block_of(kind, arch)
        if block is None:
            units[kind] = full[kind].nonzero().flatten()
        elif layers:  # the units of a closed block count as closed
            units[kind] = _widest((full[kind] * full[block][:, None])[layers])
    if not layers or not len(units["hidden"]):
        raise ValueError(
            f"The masks leave {len(layers)} layers and {len(units['hidden'])} hidden dimensions: no model is "
            "left."
        )
    heads = heads_by_group(full["head"], full["kv_head"], arch)
    grouped = (heads * full["attention"][:, None, None])[layers]
    units["kv_head"] = kv_heads = _widest(grouped.amax(-1))
    chosen = grouped.gather(1, kv_heads[:, :, None].expand(-1, -1, arch.group_size))
    within = _widest(chosen.flatten(0, 1)).unflatten(0, kv_heads.shape)
    units["head"] = (kv_heads[:, :, None] * arch.group_size + within).flatten(1)
    return Survivors(layers, units)


def _widest(gates: Tensor) -> Tensor:
    """Indices of the k most open gates of each row of [R, n], ascending; k: most open in any row."""
    count = max(1, int(torch.count_nonzero(gates, dim=1).max()))
    order = torch.argsort(gates, dim=1, descending=True, stable=True)
    return order[:, :count].sort(dim=1).values
