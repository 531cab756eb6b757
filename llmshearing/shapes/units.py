"""The kinds of masks in one table, and what follows from a set of them: targets and parameter counts.

B batch, S sequence, D hidden, H query heads, K KV heads, G = H / K, E head dim, F intermediate, L layers.

| kind | log_alpha | handed to the model | multiplies |
|---|---|---|---|
| head | [L, H] | head_z [L, 1, H, 1] | each query head's output, before the output projection |
| kv_head | [L, K] | kv_head_z [L, 1, K, 1] | the outputs of all query heads of a KV head |
| head_layer | [L] | head_layer_z [L] | the attention block's output |
| intermediate | [L, F] | intermediate_z [L, 1, 1, F] | the input of the down projection |
| mlp | [L] | mlp_z [L] | the MLP block's output |
| layer | [L] | head_layer_z and mlp_z [L] | both blocks' outputs |
| hidden | [D] | hidden_z [D] | embedding, norms' outputs, both blocks' outputs |

With grouped-query attention (G > 1) a `head` row is the query heads of one KV head, so that every group
loses as many; with multi-head attention it is all heads of a layer, as in the released code.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from llmshearing.shapes.architecture import Architecture


@dataclass(frozen=True)
class MaskKind:
    """One row of the table above.

    `size(arch, grouped)` is how many gates of a row are open in an architecture of that shape; `grouped`
    says whether the source shares KV heads.
    """

    outputs: tuple[str, ...]
    shape: Callable[[Architecture], tuple[int, ...]]
    z_shape: Callable[[Architecture], tuple[int, ...]]
    size: Callable[[Architecture, bool], int]
    target_key: str  # the key of `target_model` that names this kind's size


def _of_layers(*outputs: str) -> MaskKind:
    """One gate a layer."""
    return MaskKind(
        outputs=outputs,
        shape=lambda a: (a.n_layers,),
        z_shape=lambda a: (a.n_layers,),
        size=lambda a, grouped: a.n_layers,
        target_key="n_layers",
    )


MASK_KINDS: dict[str, MaskKind] = {
    "head": MaskKind(
        outputs=("head_z",),
        shape=lambda a: (a.n_layers, a.n_heads),
        z_shape=lambda a: (a.n_layers, 1, a.n_heads, 1),
        size=lambda a, grouped: a.group_size if grouped else a.n_heads,
        target_key="n_heads",
    ),
    "kv_head": MaskKind(
        outputs=("kv_head_z",),
        shape=lambda a: (a.n_layers, a.n_kv_heads),
        z_shape=lambda a: (a.n_layers, 1, a.n_kv_heads, 1),
        size=lambda a, grouped: a.n_kv_heads,
        target_key="n_kv_heads",
    ),
    "head_layer": _of_layers("head_layer_z"),
    "intermediate": MaskKind(
        outputs=("intermediate_z",),
        shape=lambda a: (a.n_layers, a.intermediate_size),
        z_shape=lambda a: (a.n_layers, 1, 1, a.intermediate_size),
        size=lambda a, grouped: a.intermediate_size,
        target_key="intermediate_size",
    ),
    "mlp": _of_layers("mlp_z"),
    "layer": _of_layers("head_layer_z", "mlp_z"),
    "hidden": MaskKind(
        outputs=("hidden_z",),
        shape=lambda a: (a.d_model,),
        z_shape=lambda a: (a.d_model,),
        size=lambda a, grouped: a.d_model,
        target_key="d_model",
    ),
}

Z_NAMES = tuple(dict.fromkeys(z for kind in MASK_KINDS.values() for z in kind.outputs))

_ATTENTION_KINDS = {"head", "kv_head", "head_layer", "layer", "hidden"}
_MLP_KINDS = {"mlp", "intermediate", "layer", "hidden"}


def is_grouped(arch: Architecture) -> bool:
    """Whether query heads share KV heads."""
    return arch.group_size > 1


def row_size(name: str, arch: Architecture) -> int:
    """Gates in one row of mask `name`: the units that compete with each other."""
    return MASK_KINDS[name].size(arch, is_grouped(arch))


def kept_size(name: str, source: Architecture, target: Architecture) -> int:
    """Gates of one row of mask `name` that stay open when `source` has the shape of `target`."""
    return MASK_KINDS[name].size(target, is_grouped(source))


def rows(name: str, log_alpha: Tensor, arch: Architecture) -> Tensor:
    """`log_alpha` of mask `name` as [rows..., gates of a row]; [gates] where there is one row."""
    if name == "head" and is_grouped(arch):
        return log_alpha.reshape(-1, arch.group_size)
    return log_alpha


def needed_kinds(source: Architecture, target: Architecture) -> list[str]:
    """The masks that take `source` to `target`: one for each size that shrinks."""
    kinds = ["head", "intermediate", "layer", "hidden"]
    if is_grouped(source):
        kinds.insert(1, "kv_head")
    return [name for name in kinds if kept_size(name, source, target) < row_size(name, source)]


def chosen_kinds(given: list[str] | None, source: Architecture, target: Architecture | None) -> list[str]:
    """The masks a run learns: those given, else those that the target needs."""
    if given is not None:
        return list(given)
    return needed_kinds(source, target) if target is not None else []


def prunable_parameters(names: Iterable[str], arch: Architecture) -> int:
    """Parameters of the matrices that masks `names` reach: attention, MLP or both (released code)."""
    kinds = set(names)
    attention = arch.n_layers * arch.attention_matrix_parameters if kinds & _ATTENTION_KINDS else 0
    mlp = arch.n_layers * arch.mlp_matrix_parameters if kinds & _MLP_KINDS else 0
    return attention + mlp


def expected_parameters(keep: Mapping[str, Tensor], arch: Architecture) -> Tensor:
    """Expected number of surviving parameters among `prunable_parameters`; a scalar.

    Args:
        keep: keep probability of every gate, by mask name, in the shapes of the table. A gate of a unit
            and of the layer around it are independent, so their probabilities multiply; `hidden` scales
            all matrices alike.
    """
    some = next(iter(keep.values()))
    ones = torch.ones(arch.n_layers, dtype=some.dtype, device=some.device)
    per_layer = keep.get("layer", ones)
    count = torch.zeros((), dtype=some.dtype, device=some.device)
    if keep.keys() & _ATTENTION_KINDS:
        heads = _expected_heads(keep, arch, ones)
        unit = 2 * arch.d_model * arch.head_dim
        count = count + (keep.get("head_layer", per_layer) * heads).sum() * unit
    if keep.keys() & _MLP_KINDS:
        width = keep["intermediate"].sum(-1) if "intermediate" in keep else ones * arch.intermediate_size
        unit = arch.mlp_matrices * arch.d_model
        count = count + (keep.get("mlp", per_layer) * width).sum() * unit
    return count * keep["hidden"].mean() if "hidden" in keep else count


def _expected_heads(keep: Mapping[str, Tensor], arch: Architecture, ones: Tensor) -> Tensor:
    """Expected query heads plus KV heads of each layer, [L]: a head costs two matrices of D x E each."""
    if not is_grouped(arch):
        return 2 * keep["head"].sum(-1) if "head" in keep else ones * 2 * arch.n_heads
    kv = keep.get("kv_head", ones[:, None].expand(-1, arch.n_kv_heads))
    if "head" in keep:
        query = keep["head"].view(arch.n_layers, arch.n_kv_heads, arch.group_size).sum(-1)
    else:
        query = torch.full_like(kv, arch.group_size)
    return (kv * (1 + query)).sum(-1)
