"""What evaluations and measurements of speed found: kept in JSON, and shown side by side.

`evaluation.json` and `speed.json` hold models in the order in which they were first measured. A model is
known by the place it was read from and by `stamp`, which changes with its files.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from llmshearing.files import lock, replacing

T = TypeVar("T")

EVALUATION, SPEED = "evaluation.json", "speed.json"
LOWER_IS_BETTER = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")


@dataclass(frozen=True)
class Score:
    """What a model reached in a task.

    Attributes:
        task: its name.
        metric: the one that counts, `value` it and `stderr` its standard error, NaN where there is none.
        examples: documents that were asked.
        settings: what the value depends on beside the model; a score is only reused where they are the same.
        metrics: every metric of the task, and standard errors as `NAME_stderr`.
    """

    task: str
    metric: str
    value: float
    stderr: float
    examples: int
    settings: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass
class Measured:
    """A model and what was measured of it.

    Attributes:
        model: as it was named on the command line.
        place: where it lies.
        stamp: identifies the state of its files.
        parameters: all of them, embeddings included.
        scores: of an evaluation, by task.
        speeds: of a measurement of speed, by setting.
    """

    model: str
    place: str
    stamp: str
    parameters: int = 0
    scores: dict[str, Score] = field(default_factory=dict)
    speeds: dict[str, dict[str, Any]] = field(default_factory=dict)


def read(path: Path) -> list[Measured]:
    """What a file holds; nothing when there is none.

    Raises:
        ValueError: when it is not a file of this package.
    """
    if not path.is_file():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["models"]
        for entry in entries:
            entry["scores"] = {name: _typed(Score(**score)) for name, score in entry["scores"].items()}
        return [_typed(Measured(**entry)) for entry in entries]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} does not hold results as this package writes them ({error}): move it away, or choose "
            "another --out."
        ) from error


_TYPES: dict[str, Any] = {"value": float, "stderr": float, "examples": int, "parameters": int}
_TYPES |= dict.fromkeys(("task", "metric", "model", "place", "stamp"), str)
_TYPES |= dict.fromkeys(("settings", "metrics", "scores", "speeds"), dict)


def _typed(found: T) -> T:
    """A score or a model whose values have the types of their fields.

    Raises:
        TypeError: for the first that has not.
    """
    for name, value in vars(found).items():
        if not isinstance(value, (int, float) if _TYPES[name] is float else _TYPES[name]):
            raise TypeError(f"{name} is {str(value)[:40]!r}")
    figures = getattr(found, "speeds", {}).values()
    if not all(isinstance(each, dict) for each in figures):
        raise TypeError("speeds hold something that is not figures by name")
    for key, value in ((key, each.get(key)) for each in figures for key, *_ in _SPEEDS):
        if not isinstance(value, int | float | None):
            raise TypeError(f"{key} is {str(value)[:40]!r}")
    return found


def write(path: Path, models: Sequence[Measured]) -> None:
    """Write a file, whole or not at all."""
    text = json.dumps({"models": [asdict(each) for each in models]}, indent=1) + "\n"
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


def keep(path: Path, found: Measured) -> None:
    """Add what was measured of a model to a file that other processes may add to at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    held = path.with_name(f".{path.name}.lock")
    with lock(held, wait=True):
        models = read(path)
        kept = entry(models, found.model, found.place, found.stamp)
        kept.parameters = found.parameters
        kept.scores |= found.scores
        kept.speeds |= found.speeds
        write(path, models)
        held.unlink()


def entry(models: list[Measured], model: str, place: str, stamp: str) -> Measured:
    """The entry of a model, new and empty when its files have changed or it was not there."""
    for index, found in enumerate(models):
        if found.place == place:
            if found.stamp != stamp:
                models[index] = Measured(model, place, stamp)
            models[index].model = model
            return models[index]
    models.append(Measured(model, place, stamp))
    return models[-1]


def short_names(names: Sequence[str]) -> list[str]:
    """Names without the folders that they share, each still different from the others."""
    if len(names) < 2:
        return [Path(name).name or name for name in names]
    shared = os.path.commonpath(names) if len({name.startswith("/") for name in names}) == 1 else ""
    return [os.path.relpath(name, shared) if shared else name for name in names]


def rounded(value: float, stderr: float) -> str:
    """A value and its standard error: 41.2 ± 1.1."""
    return f"{value:.1f}" if math.isnan(stderr) else f"{value:.1f} ± {stderr:.1f}"


def score_rows(models: Sequence[Measured], tasks: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The table of an evaluation: its head and its rows.

    Accuracies are in percent; their mean is over the tasks that every model has, and its standard error
    sqrt(sum of squares) / n takes tasks as independent. The share is that of the first model's mean.
    Perplexities and other metrics of which less is better stand below, without a mean.

    Args:
        tasks: in their order; those that no model has are left out.
    """
    head = ["task", "metric", *short_names([each.model for each in models])]
    found = {task: [each.scores.get(task) for each in models] for task in tasks}
    shown = {task: row for task, row in found.items() if any(row)}
    metric = {task: next(score.metric for score in row if score) for task, row in shown.items()}
    higher = [task for task in shown if metric[task] not in LOWER_IS_BETTER]
    rows = [[task, metric[task], *(_cell(s, 100) for s in shown[task])] for task in higher]
    common = [task for task in higher if all(shown[task])]
    if len(common) > 1 or (common and len(models) > 1):
        means = [_mean([each.scores[task] for task in common]) for each in models]
        rows.append([f"mean of {len(common)}", "", *(rounded(100 * m, 100 * e) for m, e in means)])
        first = means[0][0]
        if len(models) > 1 and first > 0:
            rows.append(["share of the first", "", *(f"{m / first:.1%}" for m, _ in means)])
    rows += [
        [task, metric[task], *(_cell(s, 1) for s in shown[task])] for task in shown if task not in higher
    ]
    rows.append(["parameters", "", *(f"{each.parameters / 1e6:,.1f}M" for each in models)])
    return head, rows


def as_text(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in [head, *rows]
    )


def _cell(score: Score | None, factor: float) -> str:
    return "" if score is None else rounded(factor * score.value, factor * score.stderr)


def _mean(scores: Sequence[Score]) -> tuple[float, float]:
    """Mean of values, and its standard error."""
    mean = sum(score.value for score in scores) / len(scores)
    return mean, math.sqrt(sum(score.stderr**2 for score in scores)) / len(scores)


def in_folders(folders: Sequence[Path], name: str) -> list[Measured]:
    """Every model in the files `name` of run folders, each once, the first file's first."""
    found: dict[str, Measured] = {}
    for folder in folders:
        for each in read(folder / name):
            kept = found.setdefault(each.place, each)
            if kept is not each and kept.stamp == each.stamp:
                kept.scores = {**kept.scores, **each.scores}
                kept.speeds = {**kept.speeds, **each.speeds}
    return list(found.values())


def speed_rows(models: Sequence[Measured], settings: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The table of a measurement of speed: its head and its rows.

    Each figure is followed by its ratio to the first model's; `promised` is what the shapes promise.

    Args:
        settings: in their order.
    """
    head = ["batch x context", "", *short_names([each.model for each in models])]
    rows = []
    for name in settings:
        values = [each.speeds.get(name) for each in models]
        first = values[0] or {}
        for key, title, form in _SPEEDS:
            cells = []
            for value in values:
                if not value or value.get(key) is None:
                    cells.append("")
                    continue
                base = first.get(key)
                ratio = f" ({value[key] / base:.2f}x)" if base and value is not first else ""
                cells.append(form(value[key]) + ratio)
            rows.append([name, title, *cells])
    return head, rows


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"


def _milliseconds(value: float) -> str:
    return f"{1e3 * value:,.0f} ms"


def _megabytes(value: float) -> str:
    return f"{value / 1e6:,.0f} MB"


_SPEEDS: tuple[tuple[str, str, Any], ...] = (
    ("prefill", "prefill tokens/s", _number),
    ("prefill_promised", "  promised by the shape", lambda value: f"{value:.2f}x"),
    ("decode", "decode tokens/s", _number),
    ("decode_promised", "  promised by the shape", lambda value: f"{value:.2f}x"),
    ("first_token", "first token", _milliseconds),
    ("weights", "weights", _megabytes),
    ("peak", "peak memory", _megabytes),
)


def settings_of(models: Sequence[Measured]) -> list[str]:
    """Every setting in which the speed of a model was measured."""
    return list(dict.fromkeys(name for each in models for name in each.speeds))


def tasks_of(models: Sequence[Measured]) -> list[str]:
    """Every task of which a model has a score."""
    return list(dict.fromkeys(task for each in models for task in each.scores))
