"""Scores of units, and the units that a target keeps by them: pure functions.

A higher score stays. All read the table of units, so they hold for every family.

B batch, S sequence, N calibration samples, L layers, D hidden, H query heads, K KV heads, F intermediate.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from llmshearing.pruning.cut import split_layer
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.key_map import PREFIX
from llmshearing.shapes.units import (
    GATES,
    KINDS,
    Weight,
    is_grouped,
    kept_size,
    needed_kinds,
    rows,
    weight_table,
)

LAYER = "layer"


def kinds_of(arch: Architecture) -> list[str]:
    """The kinds of units that have scores: those that a target may shrink."""
    grouped = ["kv_head"] if is_grouped(arch) else []
    return ["head", *grouped, "intermediate", "hidden", LAYER]


# ---------------------------------------------------------------- from weights


def sums_by_unit(weight: Weight, values: Tensor) -> dict[str, Tensor]:
    """Sums of one number an entry of a weight over the rows and columns that each unit owns, by kind: [n].

    Args:
        values: in the shape of the weight, or of its bias, which belongs to its rows.
    """
    found: dict[str, Tensor] = {}
    for dim, axis in enumerate(weight.axes[: values.dim()]):
        if axis.owner is not None:
            others = [other for other in range(values.dim()) if other != dim]
            total = values.sum(others) if others else values
            total = total.unflatten(0, (axis.units, axis.each)).sum(1)
            found[axis.owner] = found.get(axis.owner, 0) + total
    return found


class UnitSums:
    """Sums over all weights of a model, weight by weight.

    Args:
        arch: the model.
        device: where the sums are kept, fp32.
    """

    def __init__(self, arch: Architecture, device: str | torch.device = "cpu") -> None:
        self._arch = arch
        self._table = weight_table(arch)
        owners = {axis.owner for weight in self._table.values() for axis in weight.axes if axis.owner}
        self._sums = {kind: torch.zeros(KINDS[kind].shape(arch), device=device) for kind in owners | {LAYER}}

    def add(self, name: str, values: Tensor) -> None:
        """Add one number an entry of the weight or bias `name`, as a decoder's state dict names it."""
        layer, part = split_layer(name)
        weight = self._table[part.rpartition(".")[0]]
        for kind, sums in sums_by_unit(weight, values).items():
            (self._sums[kind][layer] if GATES[kind].per_layer else self._sums[kind]).add_(sums)
        if layer is not None:
            self._sums[LAYER][layer] += values.sum()

    def scores(self) -> dict[str, Tensor]:
        """One score a unit by kind; that of a unit includes all that is removed with it."""
        return with_dependants(self._sums, self._arch)


def with_dependants(scores: Mapping[str, Tensor], arch: Architecture) -> dict[str, Tensor]:
    """Scores in which each unit's includes those of the units that are removed with it.

    With a KV head go the query heads that it serves; with multi-head attention, with a head its KV head.
    """
    scores = dict(scores)
    own = scores.pop("kv_head", 0)
    if is_grouped(arch):
        return scores | {"kv_head": own + scores["head"].unflatten(-1, (arch.n_kv_heads, -1)).sum(-1)}
    return scores | {"head": own + scores["head"]}


def magnitude(pieces: Iterable[Mapping[str, Tensor]], arch: Architecture) -> dict[str, Tensor]:
    """Sum of |weight| over all that is removed with a unit.

    Args:
        pieces: the weights by our names, some at a time.
    """
    sums = UnitSums(arch)
    for piece in pieces:
        for name, weight in piece.items():
            sums.add(name.removeprefix(PREFIX), weight.float().abs())
    return sums.scores()


def random(arch: Architecture, seed: int) -> dict[str, Tensor]:
    """Uniform numbers, the same for the same seed: what any other score has to beat."""
    generator = torch.Generator().manual_seed(seed)
    return {kind: torch.rand(KINDS[kind].shape(arch), generator=generator) for kind in kinds_of(arch)}


# ------------------------------------------------------------ from activations


def mean_activations(x_BSC: Tensor, each: int = 1) -> Tensor:
    """Mean over the sequence of each unit's activation, [B, units] in fp32 (Minitron, arXiv 2407.14679).

    Args:
        x_BSC: channels, of which each unit has `each` neighbours.

    Returns:
        Of one channel the mean of its absolute value, of several that of their L2 norm.
    """
    wide = x_BSC.float()
    return (wide.abs() if each == 1 else wide.unflatten(-1, (-1, each)).norm(dim=-1)).mean(1)


def turned(before_BSD: Tensor, after_BSD: Tensor) -> Tensor:
    """How far a layer turns the residual stream: 1 - cos(input, output), summed over tokens, in fp64."""
    cosines = torch.cosine_similarity(before_BSD.float(), after_BSD.float(), dim=-1)
    return (1 - cosines).double().sum()


# --------------------------------------------------------------------- choice


def kept_units(scores: Mapping[str, Tensor], source: Architecture, target: Architecture) -> dict[str, Tensor]:
    """The units that `source` keeps to have the shape of `target`: 1 for each that stays, 0 for the others.

    In each row (`row_size`) the highest scores stay, of equal ones the first.

    Returns:
        By kind, in the shapes of `Kind.shape`; kinds of which all stay are left out.

    Raises:
        ValueError: when a score is not a finite number, or there are none of a kind that shrinks.
    """
    kept = {}
    for kind in needed_kinds(source, target):
        if kind not in scores:
            raise ValueError(
                f"There are no scores of {kind}, and {KINDS[kind].target_key} shrinks; there are scores of "
                f"{', '.join(scores)}."
            )
        by_row = rows(kind, scores[kind], source)
        if not by_row.isfinite().all():
            raise ValueError(f"The scores of {kind} are not all finite numbers; compute them again.")
        order = by_row.argsort(dim=-1, descending=True, stable=True)
        stay = order[..., : kept_size(kind, source, target)]
        kept[kind] = torch.zeros_like(by_row).scatter(-1, stay, 1.0).reshape(scores[kind].shape)
    return kept


def ranks(scores: Tensor) -> Tensor:
    """The place of each score in its row, from 0 for the lowest to 1 for the highest; of a lone one 1."""
    last = scores.shape[-1] - 1
    if last == 0:
        return torch.ones_like(scores)
    return scores.argsort(dim=-1, stable=True).argsort(dim=-1) / last
