"""Masks folded into weights, and what they close taken out: pure functions over state dicts.

L layers, D hidden, H query heads, K KV heads, G = H / K, E head dim, F intermediate.

Every mask enters exactly one weight, so that the smaller model computes what the masked one did, soft masks
included (the residual stream is masked where it is written, and the norms' outputs):

| mask | columns of | rows of | not in |
|---|---|---|---|
| hidden_z | wte | out_proj, down_proj and norms, with biases | output; ln_f when embeddings are tied |
| head_z, kv_head_z | out_proj | | |
| head_layer_z | | out_proj and its bias | |
| intermediate_z | down_proj | | |
| mlp_z | | down_proj and its bias | |
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.key_map import PREFIX


@dataclass(frozen=True)
class Gates:
    """All masks of a model in plain shapes, 1 where a kind is not masked; fp32.

    hidden [D]; heads [L, H], those of KV heads multiplied in; intermediate [L, F]; attention, mlp [L].
    """

    hidden: Tensor
    heads: Tensor
    intermediate: Tensor
    attention: Tensor
    mlp: Tensor


@dataclass(frozen=True)
class Survivors:
    """Ascending indices of what stays.

    layers [L']; hidden [D']; for each of these layers heads [L', H'], kv_heads [L', K'],
    intermediate [L', F'].
    """

    layers: list[int]
    hidden: Tensor
    heads: Tensor
    kv_heads: Tensor
    intermediate: Tensor


@dataclass(frozen=True)
class Axis:
    """What happens to one axis of a weight: indices to keep and factors over the whole axis; None: all, 1."""

    keep: Tensor | None = None
    scale: Tensor | None = None


def prune(
    weights: Mapping[str, Tensor], zs: Mapping[str, Tensor], arch: Architecture
) -> tuple[dict[str, Tensor], Architecture]:
    """The smaller model that computes what `arch` with masks `zs` does.

    A unit goes when its mask is 0, a layer when the masks of both its blocks are. Layers of an HF model are
    equally wide: each keeps as many units as the layer with most survivors, closed ones as zeros.

    Args:
        weights: by our names; what is not the model's own (masks, multipliers) is left out.
        zs: masks by name, in the shapes of `llmshearing.shapes.units`.

    Returns:
        weights of their old types, multiplied in fp32, with layers renumbered; and their architecture.

    Raises:
        ValueError: when nothing would be left.
    """
    gates = gates_of(zs, arch)
    stay = survivors(gates, arch)
    result = {}
    for name, weight in weights.items():
        if name.startswith(PREFIX):
            place = _placed(name.removeprefix(PREFIX), gates, stay, arch)
            if place is not None:
                new_name, rows, columns = place
                result[PREFIX + new_name] = _cut(weight, rows, columns)
    return result, arch.resized(
        d_model=len(stay.hidden),
        n_layers=len(stay.layers),
        n_heads=stay.heads.shape[1],
        n_kv_heads=stay.kv_heads.shape[1],
        intermediate_size=stay.intermediate.shape[1],
    )


def gates_of(zs: Mapping[str, Tensor], arch: Architecture) -> Gates:
    """Masks as the model takes them, in plain shapes."""

    def plain(name: str, *shape: int) -> Tensor:
        return zs[name].detach().cpu().float().reshape(shape) if name in zs else torch.ones(shape)

    layers = arch.n_layers
    groups = plain("kv_head_z", layers, arch.n_kv_heads).repeat_interleave(arch.group_size, dim=1)
    return Gates(
        hidden=plain("hidden_z", arch.d_model),
        heads=plain("head_z", layers, arch.n_heads) * groups,
        intermediate=plain("intermediate_z", layers, arch.intermediate_size),
        attention=plain("head_layer_z", layers),
        mlp=plain("mlp_z", layers),
    )


def survivors(gates: Gates, arch: Architecture) -> Survivors:
    """What stays under `gates`: KV heads with any open query head, and as many query heads in each.

    Raises:
        ValueError: when no layer or no hidden dimension stays.
    """
    layers = (gates.attention + gates.mlp).nonzero().flatten().tolist()
    hidden = gates.hidden.nonzero().flatten()
    if not layers or not len(hidden):
        raise ValueError(
            f"The masks leave {len(layers)} layers and {len(hidden)} hidden dimensions: no model is left."
        )
    # A closed block's units need no room: they count as closed.
    grouped = gates.heads.unflatten(1, (arch.n_kv_heads, arch.group_size)) * gates.attention[:, None, None]
    grouped = grouped[layers]
    kv_heads = _widest(grouped.amax(-1))
    chosen = grouped.gather(1, kv_heads[:, :, None].expand(-1, -1, arch.group_size))
    within = _widest(chosen.flatten(0, 1)).unflatten(0, kv_heads.shape)
    heads = (kv_heads[:, :, None] * arch.group_size + within).flatten(1)
    intermediate = _widest((gates.intermediate * gates.mlp[:, None])[layers])
    return Survivors(layers, hidden, heads, kv_heads, intermediate)


def _widest(gates: Tensor) -> Tensor:
    """The k most open gates of each row of [R, n], ascending [R, k]; k: as many as any row has open, or 1."""
    count = max(1, int(torch.count_nonzero(gates, dim=1).max()))
    order = torch.argsort(gates, dim=1, descending=True, stable=True)
    return order[:, :count].sort(dim=1).values


def _placed(name: str, gates: Gates, stay: Survivors, arch: Architecture) -> tuple[str, Axis, Axis] | None:
    """The new name of a weight and what happens to its rows and columns; None when its layer goes."""
    part, _, parameter = name.rpartition(".")
    if not part.startswith("blocks."):
        return (name, *_outer_axes(gates, stay, arch)[part])
    _, layer, part = part.split(".", 2)
    if int(layer) not in stay.layers:
        return None
    position = stay.layers.index(int(layer))
    rows, columns = _block_axes(int(layer), position, gates, stay, arch)[part]
    return f"blocks.{position}.{part}.{parameter}", rows, columns


def _outer_axes(gates: Gates, stay: Survivors, arch: Architecture) -> dict[str, tuple[Axis, Axis]]:
    """(rows, columns) of the weights outside of layers."""
    masked = Axis(stay.hidden, gates.hidden)
    return {
        "wte": (Axis(), masked),
        "ln_f": (Axis(stay.hidden) if arch.tie_embeddings else masked, Axis()),
        "output": (Axis(), Axis(stay.hidden)),
    }


def _block_axes(
    layer: int, position: int, gates: Gates, stay: Survivors, arch: Architecture
) -> dict[str, tuple[Axis, Axis]]:
    """(rows, columns) of the weights of a layer that becomes layer `position`."""
    size = arch.head_dim
    read, masked = Axis(stay.hidden), Axis(stay.hidden, gates.hidden)
    heads, kv_heads = stay.heads[position], stay.kv_heads[position]
    keys = Axis(_spread(kv_heads, size))
    inner = stay.intermediate[position]
    return {
        "ln_1": (masked, Axis()),
        "ln_2": (masked, Axis()),
        "attn.wq": (Axis(_spread(heads, size)), read),
        "attn.wk": (keys, read),
        "attn.wv": (keys, read),
        "attn.query_key_value": (Axis(_spread(heads, 3 * size)), read),
        "attn.q_norm": (Axis(), Axis()),
        "attn.k_norm": (Axis(), Axis()),
        "attn.out_proj": (
            Axis(stay.hidden, gates.hidden * gates.attention[layer]),
            Axis(_spread(heads, size), gates.heads[layer].repeat_interleave(size)),
        ),
        "mlp.gate_proj": (Axis(inner), read),
        "mlp.up_proj": (Axis(inner), read),
        "mlp.down_proj": (
            Axis(stay.hidden, gates.hidden * gates.mlp[layer]),
            Axis(inner, gates.intermediate[layer]),
        ),
    }


def _spread(units: Tensor, size: int) -> Tensor:
    """Indices of the rows of `units`, each of which has `size` of them."""
    return (units[:, None] * size + torch.arange(size)).flatten()


def _cut(weight: Tensor, rows: Axis, columns: Axis) -> Tensor:
    """`weight` with both axes cut and scaled, the products in fp32; a vector has rows alone."""
    dtype = weight.dtype
    for dim, axis in enumerate((rows, columns)[: weight.dim()]):
        scale = axis.scale
        if axis.keep is not None:
            weight = weight.index_select(dim, axis.keep)
            scale = None if scale is None else scale[axis.keep]
        if scale is not None:
            weight = weight.float() * scale.unflatten(0, (-1,) + (1,) * (weight.dim() - 1 - dim))
    return weight.to(dtype)
