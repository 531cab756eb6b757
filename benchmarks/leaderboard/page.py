"""A leaderboard's result as tables and plots."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

Result = Mapping[str, Any]


def block(name: str, result: Result) -> str:
    """A leaderboard's tables, each with its plot.

    Args:
        name: of the result file, without its suffix.
    """
    cells = result["values"]["cells"]
    parts = []
    for target in dict.fromkeys(cell["target"] for cell in cells):
        mine = [cell for cell in cells if cell["target"] == target]
        parts += [f"### {result['config']['title']}: {target}", table(mine, result["config"])]
        parts.append(
            f"![Loss of every seed, and evaluation loss during the training]({picture_name(name, target)})"
        )
    places = Counter(map(place, cells))
    parts.append("Cells ran on " + "; ".join(f"{name}: {count}" for name, count in places.items()) + ".")
    trials = result["config"]["trials"]
    if len(trials) > 1:
        parts.append(f"Every method chose among {len(trials)} trials, by the first seed: {trials}.")
    return "\n\n".join(parts)


def place(cell: Result) -> str:
    """The machine and versions of a cell, in words."""
    machine, versions = cell["on"]["machine"], cell["on"]["versions"]
    device = machine["gpu"] or f"{machine['cores']} cores of {machine['processor']}"
    return f"{device} (torch {versions['torch']}, transformers {versions['transformers']})"


def ran_alone(cells: Sequence[Result]) -> bool:
    """Whether one cell ran at a time, so that its seconds mean something."""
    return all(cell["jobs"] == 1 for cell in cells)


def table(cells: Sequence[Result], config: Mapping[str, Any]) -> str:
    """Methods by their mean loss: the mean and standard deviation over seeds, tokens, seconds, by domain."""
    domains = config["domains"]
    common = _common_seconds(cells) if ran_alone(cells) else None
    head = ["method", "loss", "before the last run", "tokens", *domains, "seeds"]
    if common is not None:
        head[4:4] = ["seconds of training", f"loss after {common:.0f} s"]
    rows = []
    for name, group in groupby(sorted(cells, key=lambda c: c["method"]), key=lambda c: c["method"]):
        chosen = [cell for cell in group if cell["chosen"]]
        good = [cell for cell in chosen if "loss" in cell]
        if len(good) < len(chosen):
            reason = next(cell["failed"] for cell in chosen if "failed" in cell)
            rows.append((float("inf"), [name, f"FAILED: {reason}", *[""] * (len(head) - 3), len(good)]))
            continue
        row = [name, spread([c["loss"] for c in good]), spread([c["cut"] for c in good])]
        row.append(f"{statistics.mean(c['tokens'] for c in good):,.0f}")
        if common is not None:
            row.append(f"{statistics.mean(c['seconds'] for c in good):.0f}")
            row.append(spread([loss_at(c["curve"], common) for c in good]))
        row += [f"{statistics.mean(c['losses'][d] for c in good):.3f}" for d in domains]
        rows.append((statistics.mean(c["loss"] for c in good), [*row, len(good)]))
    return markdown([head, *(row for _, row in sorted(rows, key=lambda r: r[0]))])


def markdown(rows: Sequence[Sequence[Any]]) -> str:
    """Rows, the first of them the head, as a table."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def spread(values: Sequence[float]) -> str:
    """The mean and, of several values, their standard deviation."""
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def loss_at(curve: Sequence[Sequence[float]], seconds: float) -> float:
    """The loss after so many seconds of training, between two evaluations by a straight line.

    Where two evaluations stand at the same second (before and after a cut), the later one counts.
    """
    before = [point for point in curve if point[2] <= seconds]
    after = [point for point in curve if point[2] > seconds]
    if not before or not after:
        return (before or curve)[-1][3] if before else curve[0][3]
    (_, _, t0, y0), (_, _, t1, y1) = before[-1], after[0]
    return y0 + (y1 - y0) * (seconds - t0) / (t1 - t0)


def draw(name: str, result: Result, folder: Path) -> None:
    """Write the pictures that `block` refers to: a dot for each seed's loss, and its way there."""
    cells = [cell for cell in result["values"]["cells"] if cell["chosen"] and "loss" in cell]
    for target in dict.fromkeys(cell["target"] for cell in cells):
        mine = [cell for cell in cells if cell["target"] == target]
        methods = sorted({c["method"] for c in mine}, key=lambda m: _mean_loss(mine, m))
        palette = plt.get_cmap("turbo")
        colours = {method: palette(i / len(methods)) for i, method in enumerate(methods)}
        ways = [(1, "tokens of re-training"), (2, "seconds of training")][: 2 if ran_alone(mine) else 1]
        size = (5 + 5 * len(ways), 1.5 + 0.22 * max(len(methods), 12))
        figure, (dots, *axes) = plt.subplots(1, 1 + len(ways), figsize=size)
        least, most = _limits([cell["loss"] for cell in mine])
        _draw_dots(dots, mine, methods, colours, most)
        dots.set_xlim(least, most)
        for axis, (place, label) in zip(axes, ways, strict=True):
            for cell in mine:
                points = [point for point in cell["curve"] if point[0] == cell["curve"][-1][0]]
                axis.plot(
                    [p[place] for p in points], [p[3] for p in points], color=colours[cell["method"]], lw=1
                )
            axis.set_xlim(0, 1.05 * statistics.median(cell["curve"][-1][place] for cell in mine))
            axis.set_ylim(least, most)
            axis.locator_params(axis="x", nbins=4)
            axis.set_xlabel(label)
            axis.set_ylabel("evaluation loss, nats a token")
            axis.grid(alpha=0.3)
        figure.tight_layout()
        figure.savefig(folder / picture_name(name, target), metadata={"Date": None})
        plt.close(figure)


def _draw_dots(
    axis: Axes, cells: Sequence[Result], methods: Sequence[str], colours: Mapping[str, Any], most: float
) -> None:
    """A row for each method, a dot for each seed; a mean beyond `most` is written at the edge."""
    for row, method in enumerate(methods):
        losses = [cell["loss"] for cell in cells if cell["method"] == method]
        axis.scatter(losses, [row] * len(losses), color=[colours[method]], s=18)
        if (mean := statistics.mean(losses)) > most:
            axis.text(most, row, f"{mean:.2f} \N{RIGHTWARDS ARROW} ", ha="right", va="center", fontsize=8)
    axis.set_yticks(range(len(methods)), methods, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("loss at the end, nats a token")
    axis.grid(alpha=0.3)


def _limits(losses: Sequence[float]) -> tuple[float, float]:
    """Of the axis of losses: from the best to as far beyond the median as shows most of them."""
    least, middle = min(losses), statistics.median(losses)
    span = max(middle - least, 0.01)
    return least - 0.2 * span, middle + 2.5 * span


def picture_name(name: str, target: str) -> str:
    """The file of a target's plot, beside docs/evidence.md."""
    return f"{name}-{''.join(c for c in target if c.isalnum())}.svg"


def _mean_loss(cells: Sequence[Result], method: str) -> float:
    return statistics.mean(cell["loss"] for cell in cells if cell["method"] == method)


def _common_seconds(cells: Sequence[Result]) -> float | None:
    """The seconds of training that every cell reached."""
    good = [cell["seconds"] for cell in cells if cell["chosen"] and "loss" in cell]
    return min(good, default=None)
