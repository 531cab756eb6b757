"""Which layers LayerCHOP removes, in which order and when (Just CHOP, arXiv 2305.14864, section 3.1).

The paper shows its five schemes as a picture alone; the formulas are those of `docs/decisions/130-*.md`. The
first and the last layer always stay.

L layers, K of them stay, R = L - K go; layers are counted from 0.
"""

from collections.abc import Sequence

from llmshearing.config import LayerChopConfig
from llmshearing.config.durations import batches


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


def removed_by(settings: LayerChopConfig, removed: int, step: int) -> int:
    """How many of `removed` layers are closed in training step `step`, counted from 0.

    None for `warm_steps` steps, then `layers_per_cut` more every `interval` steps; where there is no interval
    or no such number, all at once.
    """
    warm, interval = batches(settings.warm_steps), batches(settings.interval)
    if step < warm:
        return 0
    if settings.layers_per_cut is None or not interval:
        return removed
    return min(removed, settings.layers_per_cut * (1 + (step - warm) // interval))


# ------------------------------------------------------------------ settings


def find_problems(settings: LayerChopConfig, layers: int, where: str = "model.layerchop.") -> list[str]:
    """What is wrong with settings for a model of so many layers, one sentence each.

    Args:
        where: what stands before the name of a key.
    """
    kept, keep = settings.n_layers, settings.keep
    problems = []
    if keep is not None:
        problems = _list_problems(keep, layers, where)
        if settings.scheme is not None:
            problems.append(f"{where}keep lists the layers that stay: leave {where}scheme out.")
        if kept is not None and kept != len(set(keep)):
            problems.append(
                f"{where}n_layers is {kept}, but {where}keep lists {len(set(keep))}: leave one out."
            )
    elif kept is None:
        problems = [f"Neither {where}n_layers nor {where}keep is set: say how many layers stay, or which."]
    elif kept < 2:
        problems = [f"{where}n_layers is {kept}; the first and the last layer always stay: set at least 2."]
    elif kept >= layers:
        problems = [f"{where}n_layers is {kept} of {layers} layers: nothing would be removed; set it lower."]
    ranks = "importance" in (settings.scheme, settings.order)
    if ranks and settings.scores is None:
        key = "scheme" if settings.scheme == "importance" else "order"
        problems.append(f"{where}{key} is importance, which is read from a file: give {where}scores.")
    if settings.scores is not None and not ranks:
        problems.append(f"{where}scores is given, but nothing here goes by importance: leave it out.")
    return problems


def _list_problems(keep: Sequence[int], layers: int, where: str) -> list[str]:
    last = layers - 1
    if outside := [layer for layer in keep if not 0 <= layer <= last]:
        return [f"{where}keep has {outside[0]}; the {layers} layers are counted from 0 to {last}."]
    problems = [
        f"{where}keep leaves out layer {layer}, the {word}: the first and the last layer always stay, add it."
        for layer, word in ((0, "first"), (last, "last"))
        if layer not in keep
    ]
    if len(set(keep)) == layers:
        problems.append(f"{where}keep lists all {layers} layers: nothing would be removed.")
    return problems


def number_kept(settings: LayerChopConfig) -> int:
    """How many layers stay, by settings without problems."""
    return len(settings.keep) if settings.keep is not None else settings.n_layers or 0


def chosen(
    settings: LayerChopConfig, layers: int, importance: Sequence[float] | None = None
) -> tuple[list[int], list[int]]:
    """The layers that stay, ascending, and those that go, in their order, by settings without problems."""
    keep = settings.keep
    if keep is None:
        keep = layers_to_keep(settings.scheme or "max_gap", layers, number_kept(settings), importance)
    return sorted(keep), removal_order(keep, layers, settings.order, importance)


def last_cut(settings: LayerChopConfig, removed: int) -> list[str]:
    """The durations, one after another, after which the last layer goes."""
    cuts = -(-removed // (settings.layers_per_cut or removed))
    return [settings.warm_steps, *[settings.interval] * (cuts - 1)]
