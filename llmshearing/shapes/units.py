"""The table of units: what can be pruned, and where its gates enter. All other modules read this table.

A *unit* is what pruning removes whole: one head, one hidden dimension, one layer. A *kind* is a set of like
units. A *gate* is a unit's number in [0, 1]: 0 removes it. Every gate scales the rows or columns of weights,
and closing a unit removes the rows and columns that it owns:

| weight | rows owned by | columns owned by | rows scaled by | columns scaled by |
|---|---|---|---|---|
| wte | | hidden | | hidden |
| ln_1, ln_2, ln_f | hidden | | hidden (not ln_f when embeddings are tied) | |
| attn.post_norm, mlp.post_norm | hidden | | hidden, and attention or mlp | |
| attn.wq | head x E | hidden | | |
| attn.wk, attn.wv | kv_head x E | hidden | | |
| attn.query_key_value | head x 3 E | hidden | | |
| attn.q_norm, attn.k_norm over all heads | as attn.wq, attn.wk | | | |
| attn.out_proj | hidden | head x E | hidden, attention | head, kv_head |
| mlp.gate_proj, mlp.up_proj | intermediate | hidden | | |
| mlp.down_proj | hidden | intermediate | hidden, mlp | intermediate |
| output | | hidden | | |

Rows of attn.out_proj and mlp.down_proj are not scaled where a `post_norm` follows, whose rows are instead: a
norm undoes what scales its input. Such a norm, and one over all heads, counts the open rows of the weight
before it (`Weight.over`), so closed ones count for nothing and the pruned model divides by as many.

A bias is scaled and cut with the rows of its weight. The forward pass, the export and all counts read this
table, so that the masked model equals the pruned one by construction. A new kind is a row in `KINDS`, one in
`GATES`, and its place in `weight_table`.

L layers, D hidden, H query heads, K KV heads, G = H / K, E head dim, F intermediate, V vocabulary.
"""

import math
from collections import UserDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llmshearing.shapes.architecture import Architecture

# ------------------------------------------------------------------ gates


@dataclass(frozen=True)
class Gate:
    """One kind of gate.

    Attributes:
        size: field of `Architecture` that counts the gates of a layer, or of the model; None: one a layer.
        per_layer: whether every layer has gates of its own.
        z: name of these gates in batches and outputs of the original.
        z_shape: their shape there, with -1 for the gates themselves.
    """

    size: str | None
    per_layer: bool
    z: str
    z_shape: tuple[int, ...]

    def shape(self, arch: Architecture) -> tuple[int, ...]:
        """The plain shape: [L, n], [L] or [n]."""
        layers = (arch.n_layers,) if self.per_layer else ()
        return layers if self.size is None else (*layers, getattr(arch, self.size))


GATES: dict[str, Gate] = {
    "hidden": Gate("d_model", False, "hidden_z", (-1,)),
    "head": Gate("n_heads", True, "head_z", (1, -1, 1)),
    "kv_head": Gate("n_kv_heads", True, "kv_head_z", (1, -1, 1)),
    "intermediate": Gate("intermediate_size", True, "intermediate_z", (1, 1, -1)),
    "attention": Gate(None, True, "head_layer_z", ()),
    "mlp": Gate(None, True, "mlp_z", ()),
}
Z_NAMES = tuple(gate.z for gate in GATES.values())


class Gates(UserDict[str, Tensor]):
    """Gates by their names in `GATES`, in plain shapes; a missing gate is open.

    Neither a dict nor a dataclass, whose tensors FSDP2 would cast to the type of the computation.
    """


def from_z(zs: Mapping[str, Tensor], arch: Architecture) -> Gates:
    """Gates in plain shapes from masks under the original's names, such as those of a batch.

    Raises:
        ValueError: for a mask of the wrong size.
    """
    gates = Gates()
    for name, gate in GATES.items():
        z = zs.get(gate.z)
        if z is None:
            continue
        shape = gate.shape(arch)
        if z.numel() != math.prod(shape):
            raise ValueError(f"{gate.z} has shape {list(z.shape)}; expected {list(shape)} gates.")
        gates[name] = z.reshape(shape)
    return gates


def to_z(gates: Gates) -> dict[str, Tensor]:
    """Gates under the original's names and in its shapes, such as head_z [L, 1, H, 1]."""
    return {
        GATES[name].z: value.reshape(*value.shape[: GATES[name].per_layer], *GATES[name].z_shape)
        for name, value in gates.items()
    }


# ------------------------------------------------------------------ kinds


@dataclass(frozen=True)
class Kind:
    """One kind of units that a method can choose among.

    Attributes:
        gates: the gates that its units drive: a layer is one unit with two gates.
        target_key: field of `Architecture`, and key of `target_model`, that its number is.
    """

    gates: tuple[str, ...]
    target_key: str

    def shape(self, arch: Architecture) -> tuple[int, ...]:
        """Shape of one number a unit: [L, n], [L] or [n]."""
        return GATES[self.gates[0]].shape(arch)


KINDS: dict[str, Kind] = {
    "head": Kind(("head",), "n_heads"),
    "kv_head": Kind(("kv_head",), "n_kv_heads"),
    "head_layer": Kind(("attention",), "n_layers"),
    "intermediate": Kind(("intermediate",), "intermediate_size"),
    "mlp": Kind(("mlp",), "n_layers"),
    "layer": Kind(("attention", "mlp"), "n_layers"),
    "hidden": Kind(("hidden",), "d_model"),
}
_SHRINKING = ("head", "kv_head", "intermediate", "layer", "hidden")  # one for each size of a target


def drive(by_kind: Mapping[str, Tensor]) -> Gates:
    """The gates that units drive: `by_kind` holds one number a unit, in the shapes of `Kind.shape`."""
    return Gates({gate: value for kind, value in by_kind.items() for gate in KINDS[kind].gates})


def driven(kinds: Iterable[str]) -> set[str]:
    """The gates that units of these kinds drive."""
    return {gate for kind in kinds for gate in KINDS[kind].gates}


def is_grouped(arch: Architecture) -> bool:
    """Whether query heads share KV heads."""
    return arch.group_size > 1


def heads_by_group(head: Tensor, kv_head: Tensor, arch: Architecture) -> Tensor:
    """The gates of query heads [..., H] times those of their KV heads [..., K], as [..., K, G]."""
    return head.unflatten(-1, (arch.n_kv_heads, arch.group_size)) * kv_head[..., None]


def row_size(kind: str, arch: Architecture) -> int:
    """Units of one row of `kind`: those that compete with each other.

    With grouped-query attention a row of heads is the query heads of one KV head, so that every group loses
    as many; with multi-head attention it is all heads of a layer, as in the released code.
    """
    return kept_size(kind, arch, arch)


def kept_size(kind: str, source: Architecture, target: Architecture) -> int:
    """Units of one row of `kind` that stay when `source` has the shape of `target`."""
    if kind == "head" and is_grouped(source):
        return target.group_size
    return getattr(target, KINDS[kind].target_key)


def rows(kind: str, values: Tensor, arch: Architecture) -> Tensor:
    """`values`, one number a unit, as [rows..., units of a row]; [units] where there is one row."""
    return values.reshape(-1, arch.group_size) if kind == "head" and is_grouped(arch) else values


def needed_kinds(source: Architecture, target: Architecture) -> list[str]:
    """The kinds that take `source` to `target`: one for each size that shrinks."""
    kinds = [kind for kind in _SHRINKING if kind != "kv_head" or is_grouped(source)]
    return [kind for kind in kinds if kept_size(kind, source, target) < row_size(kind, source)]


def chosen_kinds(given: list[str] | None, source: Architecture, target: Architecture | None) -> list[str]:
    """The kinds that a run chooses among: those given, else those that the target needs."""
    if given is not None:
        return list(given)
    return needed_kinds(source, target) if target is not None else []


# ---------------------------------------------------------------- the table


@dataclass(frozen=True)
class Axis:
    """Rows or columns of a weight.

    Attributes:
        units: how many units own them, each `each` of them, in their order.
        owner: kind of these units; None: no pruning removes any.
        gates: what scales them: one number a unit, one for several neighbours, or one for all.
    """

    units: int
    owner: str | None = None
    gates: tuple[str, ...] = ()
    each: int = 1

    @property
    def size(self) -> int:
        """How many rows or columns there are."""
        return self.units * self.each

    def places(self, units: Tensor) -> Tensor:
        """The rows or columns that `units` own, both as ascending indices."""
        return (units[:, None] * self.each + torch.arange(self.each, device=units.device)).flatten()


@dataclass(frozen=True)
class Weight:
    """One row of the table; a vector has rows alone.

    Attributes:
        bias: whether a bias goes with it, scaled and cut as the rows are.
        offset: what the decoder adds to the weight before it uses it.
        over: of a norm inside a block, the weight whose open rows it normalises.
    """

    rows: Axis
    columns: Axis | None = None
    bias: bool = False
    offset: float = 0.0
    over: str | None = None

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Its rows and, of a matrix, its columns."""
        return (self.rows,) if self.columns is None else (self.rows, self.columns)


def weight_table(arch: Architecture) -> dict[str, Weight]:
    """The weights of `arch`, by their names in a state dict less `blocks.{i}.` and `.weight`."""
    size = arch.head_dim
    vocabulary = Axis(arch.vocab_size)
    read = Axis(arch.d_model, "hidden")
    written = Axis(arch.d_model, "hidden", ("hidden",))
    attention_out = Axis(arch.d_model, "hidden", ("hidden", "attention"))
    mlp_out = Axis(arch.d_model, "hidden", ("hidden", "mlp"))
    query, key = Axis(arch.n_heads, "head", each=size), Axis(arch.n_kv_heads, "kv_head", each=size)
    heads = Axis(arch.n_heads, "head", ("head", "kv_head"), size)
    inner = Axis(arch.intermediate_size, "intermediate")
    gated_inner = Axis(arch.intermediate_size, "intermediate", ("intermediate",))
    norm = Weight(written, bias=arch.layer_norms, offset=arch.norm_offset)

    table = {"wte": Weight(vocabulary, written)}
    if arch.pre_norms:
        table["ln_1"] = norm
    if arch.fused_qkv:
        fused = Axis(arch.n_heads, "head", each=3 * size)
        table["attn.query_key_value"] = Weight(fused, read, arch.qkv_bias)
    else:
        table["attn.wq"] = Weight(query, read, arch.qkv_bias)
        table["attn.wk"] = table["attn.wv"] = Weight(key, read, arch.qkv_bias)
    if arch.qk_norm and arch.qk_norm_over_heads:
        table["attn.q_norm"] = Weight(query, over="attn.wq")
        table["attn.k_norm"] = Weight(key, over="attn.wk")
    elif arch.qk_norm:
        table["attn.q_norm"] = table["attn.k_norm"] = Weight(Axis(size), offset=arch.norm_offset)
    table["attn.out_proj"] = Weight(read if arch.post_norms else attention_out, heads, arch.out_bias)
    if arch.post_norms:
        table["attn.post_norm"] = Weight(attention_out, offset=arch.norm_offset, over="attn.out_proj")
    if arch.pre_norms:
        table["ln_2"] = norm
    if arch.mlp_matrices == 3:
        table["mlp.gate_proj"] = Weight(inner, read, arch.mlp_bias)
    table["mlp.up_proj"] = Weight(inner, read, arch.mlp_bias)
    table["mlp.down_proj"] = Weight(read if arch.post_norms else mlp_out, gated_inner, arch.mlp_bias)
    if arch.post_norms:
        table["mlp.post_norm"] = Weight(mlp_out, offset=arch.norm_offset, over="mlp.down_proj")
    # The head of tied embeddings is wte, whose columns carry the hidden gates already.
    table["ln_f"] = replace(norm, rows=read) if arch.tie_embeddings else norm
    if not arch.tie_embeddings:
        table["output"] = Weight(vocabulary, read)
    return table


_OUTSIDE = ("wte", "ln_f", "output")
BLOCKS = {"attn": "attention", "mlp": "mlp"}  # part of a layer -> the gate of its output


def is_in_layer(part: str) -> bool:
    """Whether every layer has a weight `part`."""
    return part not in _OUTSIDE


def gate_around(part: str) -> str | None:
    """The gate of the block that a weight or unit lies in; None outside of attention and MLP."""
    return BLOCKS.get(part.partition(".")[0])


def owners(arch: Architecture) -> set[str]:
    """The kinds whose units own rows or columns of weights."""
    return {axis.owner for weight in weight_table(arch).values() for axis in weight.axes if axis.owner}


def owns(kind: str, weight: Weight) -> bool:
    """Whether units of `kind` own rows or columns of a weight."""
    return any(axis.owner == kind for axis in weight.axes)


def block_of(kind: str, arch: Architecture) -> str | None:
    """The gate of the one block in which units of `kind` own weights; None where they own others too."""
    around = {gate_around(part) for part, weight in weight_table(arch).items() if owns(kind, weight)}
    return around.pop() if len(around) == 1 else None


def weight_shapes(arch: Architecture) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name, by a state dict of the decoder, and shape of every weight and bias of `arch`."""
    for part, weight in weight_table(arch).items():
        for layer in range(arch.n_layers) if is_in_layer(part) else [None]:
            name = part if layer is None else f"blocks.{layer}.{part}"
            yield f"{name}.weight", tuple(axis.size for axis in weight.axes)
            if weight.bias:
                yield f"{name}.bias", (weight.rows.size,)
