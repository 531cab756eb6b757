"""Which layers LayerCHOP removes, in which order and when (Just CHOP, arXiv 2305.14864, section 3.1).

The paper shows its five schemes as a picture alone; the formulas are those of `docs/decisions/130-*.md`. The
first and the last layer always stay.

L layers, K of them stay, R = L - K go; layers are counted from 0. B batch, S sequence, D hidden.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from llmshearing.config import LayerChopConfig
from llmshearing.config.durations import parse

_KEEP = "model.layerchop.keep"


def layers_to_keep(
    scheme: str, layers: int, kept: int, importance: Sequence[float] | None = None
) -> list[int]:
    """The layers that stay, ascending; the first and the last are always among them.

    | scheme | removed layers |
    |---|---|
    | `input` | 1 .. R |
    | `output` | L-1-R .. L-2 |
    | `middle` | R from 1 + floor((L-2-R) / 2) on |
    | `both` | 1 .. ceil(R/2), and the last floor(R/2) before L-1 |
    | `max_gap` | all but round(j (L-1) / (K-1)) for j = 0 .. K-1 |
    | `importance` | the R least important of 1 .. L-2; of equals, the later ones |

    Args:
        scheme: one of the table.
        layers: L.
        kept: K, from 2 to L.
        importance: one number a layer, for the scheme `importance`.
    """
    assert 2 <= kept <= layers
    removed, last = layers - kept, layers - 1
    if scheme == "max_gap":
        return [(2 * j * last + kept - 1) // (2 * (kept - 1)) for j in range(kept)]
    if scheme == "importance":
        assert importance is not None
        ranked = sorted(range(1, last), key=lambda layer: (-importance[layer], layer))
        return sorted([0, *ranked[: kept - 2], last])
    before = {"input": 0, "output": last - 1 - removed, "middle": (last - 1 - removed) // 2}
    if scheme == "both":
        gone = {*range(1, 1 + (removed + 1) // 2), *range(last - removed // 2, last)}
    else:
        gone = {*range(1 + before[scheme], 1 + before[scheme] + removed)}
    return [layer for layer in range(layers) if layer not in gone]


def removal_order(
    keep: Sequence[int], layers: int, order: str = "ascending", importance: Sequence[float] | None = None
) -> list[int]:
    """The layers that go, in the order in which they go: `ascending`, `descending` or by `importance`."""
    gone = [layer for layer in range(layers) if layer not in set(keep)]
    if order == "importance":
        assert importance is not None
        return sorted(gone, key=lambda layer: (importance[layer], layer))
    return gone if order == "ascending" else gone[::-1]


def removed_by(step: int, removed: int, warm: int, each: int | None, interval: int) -> int:
    """How many layers are closed in training step `step`, counted from 0.

    Args:
        step: the step.
        removed: R.
        warm: steps before the first cut.
        each: layers of one cut; None: all.
        interval: steps between two cuts; 0: all at once.
    """
    if step < warm:
        return 0
    if each is None or not interval:
        return removed
    return min(removed, each * (1 + (step - warm) // interval))


def layer_importance(hidden_in: Tensor, hidden_out: Tensor) -> Tensor:
    """1 - cos(input, output) of a layer, the mean over tokens (Minitron, arXiv 2407.14679, section 2).

    Args:
        hidden_in: the residual stream before the layer, [B, S, D].
        hidden_out: the residual stream after it.

    Returns:
        A scalar: 0 for a layer that only scales its input, at most 2.
    """
    cosine = torch.nn.functional.cosine_similarity(hidden_in.float(), hidden_out.float(), dim=-1)
    return 1 - cosine.mean()


# ------------------------------------------------------------------ settings


def find_problems(settings: LayerChopConfig, layers: int) -> list[str]:
    """What is wrong with settings for a model of so many layers, one sentence each."""
    kept, keep = settings.n_layers, settings.keep
    problems = []
    if keep is not None:
        problems = _list_problems(keep, layers)
        if settings.scheme is not None:
            problems.append(f"{_KEEP} lists the layers that stay: leave model.layerchop.scheme out.")
        if kept is not None and kept != len(set(keep)):
            problems.append(
                f"model.layerchop.n_layers is {kept}, but {_KEEP} lists {len(set(keep))}: leave one out."
            )
    elif kept is None:
        problems = ["model.layerchop has neither n_layers nor keep: set how many layers stay, or which."]
    elif kept >= layers:
        problems = [
            f"model.layerchop.n_layers is {kept} of {layers} layers: nothing would be removed; set it lower."
        ]
    ranks = "importance" in (settings.scheme, settings.order)
    if ranks and settings.scores is None:
        key = "scheme" if settings.scheme == "importance" else "order"
        problems.append(
            f"model.layerchop.{key} is importance, which is read from a file: set model.layerchop.scores."
        )
    if settings.scores is not None and not ranks:
        problems.append(
            "model.layerchop.scores is set, but only scheme=importance and order=importance read it: leave "
            "it out."
        )
    return problems


def _list_problems(keep: Sequence[int], layers: int) -> list[str]:
    last = layers - 1
    if outside := [layer for layer in keep if not 0 <= layer <= last]:
        return [f"{_KEEP} has {outside[0]}; the {layers} layers are counted from 0 to {last}."]
    problems = [
        f"{_KEEP} leaves out layer {layer}, the {word}: the first and the last layer always stay, add it."
        for layer, word in ((0, "first"), (last, "last"))
        if layer not in keep
    ]
    if len(set(keep)) == layers:
        problems.append(f"{_KEEP} lists all {layers} layers: nothing would be removed.")
    return problems


def chosen(
    settings: LayerChopConfig, layers: int, importance: Sequence[float] | None = None
) -> tuple[list[int], list[int]]:
    """The layers that stay, ascending, and those that go, in their order, by settings without problems."""
    keep = settings.keep
    if keep is None:
        assert settings.n_layers is not None
        keep = layers_to_keep(settings.scheme or "max_gap", layers, settings.n_layers, importance)
    return sorted(keep), removal_order(keep, layers, settings.order, importance)


def last_cut(settings: LayerChopConfig, removed: int) -> str:
    """The duration after which the last layer goes; that of the warm-up where units do not add up."""
    each = settings.layers_per_cut or removed
    warm, interval = parse(settings.warm_steps), parse(settings.interval)
    if warm.unit != interval.unit:
        return settings.warm_steps
    return f"{float(warm.number + (-(-removed // each) - 1) * interval.number):g}{warm.unit}"
