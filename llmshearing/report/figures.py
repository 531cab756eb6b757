"""What a report shows of its runs: each function turns runs into one figure."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmshearing.evaluation import results
from llmshearing.report.charts import MAX_POINTS, Line, chart, line
from llmshearing.report.maps import MaskHistory, moments, png, pooled
from llmshearing.report.reading import Run
from llmshearing.shapes.counts import embedding_parameters, parameters
from llmshearing.shapes.units import KINDS, kept_size, row_size

MEAN_LOSS = "metrics/eval/LanguageCrossEntropy"
THROUGHPUT = "throughput/tokens_per_sec"
CONVERGED = 0.01  # of the units of a kind; what is farther from its target is called out
_SIZES = {
    "d_model": "hidden size",
    "n_layers": "layers",
    "n_heads": "attention heads",
    "n_kv_heads": "KV heads",
    "intermediate_size": "MLP width",
}
_BLOCKS = {"layer": "layers", "head_layer": "attention blocks", "mlp": "MLP blocks"}
_HEADS = {"head": "attention heads", "kv_head": "KV heads"}


@dataclass(frozen=True)
class Figure:
    """Part of a page: HTML under a title, over a caption; `wide` takes a whole row."""

    title: str
    html: str
    caption: str = ""
    wide: bool = False


# ------------------------------------------------------------------ all runs


def tokens_before(runs: Sequence[Run]) -> list[int]:
    """Tokens that each run's model had seen in another of the runs: those of the run it starts from."""
    seen = []
    for run in runs:
        path = run.config.model.path
        origin = next((r for r in runs if path and _lies_in(path, r) and r is not run), None)
        seen.append(origin.steps * origin.tokens_per_step if origin else 0)
    return seen


def _lies_in(path: str, run: Run) -> bool:
    """Whether `path` is a file of the run's folder, which may have been moved since."""
    parent = Path(path).parent
    return parent.resolve() == run.folder.resolve() or parent.name == run.folder.resolve().name


def story(runs: Sequence[Run]) -> Figure:
    """The mean evaluation loss of every run against tokens."""
    lines = []
    for index, (run, before) in enumerate(zip(runs, tokens_before(runs), strict=True)):
        series = run.metrics.get(MEAN_LOSS)
        if series is not None:
            lines.append(line(run.name, before + series.steps * run.tokens_per_step, series.values, index))
    caption = "Mean over all evaluation tokens, in nats a token."
    if any(tokens_before(runs)):
        caption += " A run that starts from another's model is drawn after that one's tokens. "
        caption += "Every line begins at its run's first evaluation."
    return Figure("Evaluation loss", chart(lines, "tokens", wide=True), caption, wide=True)


def runs_table(runs: Sequence[Run]) -> Figure:
    """One row a run: what it was and how far it came."""
    rows = []
    for run in runs:
        series = run.metrics.get(MEAN_LOSS)
        first, last = (f"{series.values[i]:.4f}" if series else "" for i in (0, -1))
        rows.append(
            [run.name, f"{run.steps:,}", f"{run.steps * run.tokens_per_step:,}", first, last, kind_of(run)]
        )
    head = ["run", "steps", "tokens", "first loss", "last loss", "what"]
    return Figure("Runs", table(head, rows), "The losses are of evaluations, in nats a token.", wide=True)


def losses_table(runs: Sequence[Run]) -> Figure | None:
    """The last evaluation loss of each domain in each run, beside the reference."""
    domains = list(dict.fromkeys(domain for run in runs for domain in run.domains))
    if not domains:
        return None
    rows = []
    for run in runs:
        found = [run.domain_metric(domain, "loss") for domain in domains]
        rows.append([run.name, *(f"{series.values[-1]:.4f}" if series else "" for series in found)])
    references = {d: v for run in runs for d, v in _references(run).items()}
    if references:
        rows.append(["reference", *(f"{references[d]:.4f}" if d in references else "" for d in domains)])
    title = "Last evaluation loss of each domain"
    return Figure(title, table(["run", *domains], rows), "In nats a token; lower is better.", wide=True)


def evaluation_table(runs: Sequence[Run]) -> Figure | None:
    """What models reached, from the `evaluation.json` in the runs' folders."""
    models = results.in_folders([run.folder for run in runs], results.EVALUATION)
    tasks = results.tasks_of(models)
    if not tasks:
        return None
    head, rows = results.score_rows(models, tasks)
    caption = (
        "Accuracies in percent with standard errors; the mean is over the tasks that all models have. "
        "Of perplexities less is better."
    )
    return Figure("What the models can do", table(head, rows), caption, wide=True)


def speed_table(runs: Sequence[Run]) -> Figure | None:
    """How fast models are, from the `speed.json` in the runs' folders."""
    models = results.in_folders([run.folder for run in runs], results.SPEED)
    settings = results.settings_of(models)
    if not settings:
        return None
    head, rows = results.speed_rows(models, settings)
    machines = {speed.get("machine", "") for each in models for speed in each.speeds.values()}
    caption = f"In brackets: the ratio to the first model. Measured on {'; '.join(sorted(machines))}."
    return Figure("How fast the models are", table(head, rows), caption, wide=True)


def kind_of(run: Run) -> str:
    """What a run does, in words."""
    if run.prunes:
        return "pruning"
    return "continued pre-training" if run.config.model.path else "training from scratch"


def _references(run: Run) -> dict[str, float]:
    values = run.config.data_loading.target_loss
    return dict(zip(run.domains, values, strict=True)) if values else {}


# ------------------------------------------------------------------- one run


def shape_table(run: Run) -> Figure:
    """The architecture before and, when it is pruned to a shape, after."""
    source, target = run.source, run.target
    before = {name: getattr(source, key) for key, name in _SIZES.items()}
    before |= {"parameters": parameters(source), "without embeddings": _body(source)}
    if target is None:
        return Figure("Architecture", table(["", "size"], [[n, f"{v:,}"] for n, v in before.items()]))
    after = {name: getattr(target, key) for key, name in _SIZES.items()}
    after |= {"parameters": parameters(target), "without embeddings": _body(target)}
    rows = [[n, f"{v:,}", f"{after[n]:,}", _bar(after[n] / v)] for n, v in before.items()]
    return Figure("Architecture", table(["", "before", "after", "kept"], rows, raw={3}))


def _body(arch) -> int:
    return parameters(arch) - embedding_parameters(arch)


def _bar(share: float) -> str:
    return f'<span class="bar" style="--share:{share:.4f}"></span>{share:.0%}'


def convergence(run: Run) -> list[tuple[str, float, float]]:
    """For each kind of units, its sparsity in the end: (name, expected, target in force)."""
    found = []
    for kind in KINDS:
        expected = run.metrics.get(f"metrics/train/expected_{kind}_sparsity")
        target = run.metrics.get(f"metrics/train/target_{kind}_sparsity")
        if expected is not None and target is not None:
            found.append((kind, float(expected.values[-1]), float(target.values[-1])))
    return found


def removed_table(run: Run) -> Figure | None:
    """What was to be removed of each kind of units, and how close the run came."""
    rows = []
    for kind, expected, aim in convergence(run):
        sizes = ["", ""]
        if run.target is not None:
            sizes = [str(row_size(kind, run.source)), str(kept_size(kind, run.source, run.target))]
        verdict = (
            "reached" if abs(expected - aim) <= CONVERGED else f"{100 * abs(expected - aim):.1f} points off"
        )
        rows.append([kind, *sizes, f"{aim:.1%}", f"{expected:.1%}", verdict])
    if not rows:
        return None
    head = ["kind", "of", "keep", "remove", "removes", ""]
    caption = "Expected sparsity after the last step against the target in force; within a point: reached."
    return Figure("Removed", table(head, rows), caption)


def training_loss(run: Run) -> Figure:
    """Cross entropy of every step and, with a teacher, the divergence from it."""
    lines = _of(run, "loss/train/ce_loss", "cross entropy", 0)
    lines += _of(run, "loss/train/kl_loss", "divergence from the teacher", 1)
    taught = " The divergence has its factor temperature squared, not its weight." if lines[1:] else ""
    caption = _thinned(run.steps, f"Cross entropy of the training data, in nats a token.{taught}")
    return Figure("Training loss", chart(lines, "steps"), caption)


def domain_losses(run: Run) -> Figure | None:
    """Evaluation loss of each domain."""
    lines = [
        line(domain, series.steps, series.values, i)
        for i, domain in enumerate(run.domains)
        if (series := run.domain_metric(domain, "loss"))
    ]
    return Figure("Evaluation loss by domain", chart(lines, "steps"), "In nats a token.") if lines else None


def excess_losses(run: Run) -> Figure | None:
    """How far each domain is above its reference."""
    references = _references(run)
    lines = [
        line(domain, series.steps, series.values - references[domain], i)
        for i, domain in enumerate(run.domains)
        if domain in references and (series := run.domain_metric(domain, "loss"))
    ]
    caption = "Evaluation loss minus reference: what moves the mixture. Below 0 a domain has passed it."
    return Figure("Distance to the reference loss", chart(lines, "steps"), caption) if lines else None


def domain_weights(run: Run) -> Figure | None:
    """The mixture over time; weights set after the last step are given in the caption."""
    lines, unused = [], []
    for i, domain in enumerate(run.domains):
        series = run.domain_metric(domain, "weight")
        if series is not None:
            count = max(int(np.sum(series.steps < run.steps)), 1)
            unused += [f"{domain} {value:.3f}" for value in series.values[count:][-1:]]
            lines.append(line(domain, *_held(series.steps[:count], series.values[:count], run.steps), i))
    caption = "Probability that a training sequence is of a domain."
    if unused:
        caption += f" Set after the last step: {', '.join(unused)}."
    return Figure("Domain weights", chart(lines, "steps", from_zero=True), caption) if lines else None


def domain_tokens(run: Run) -> Figure | None:
    """Tokens that each domain has given, as the weights in force make expect."""
    lines = []
    for i, domain in enumerate(run.domains):
        series = run.domain_metric(domain, "weight")
        if series is not None:
            steps = np.append(series.steps, max(run.steps, series.steps[-1]))
            used = np.concatenate([[0.0], np.cumsum(np.diff(steps) * series.values)]) * run.tokens_per_step
            lines.append(line(domain, steps, used, i))
    caption = "Cumulative, by the weights in force."
    return Figure("Tokens used", chart(lines, "steps", from_zero=True), caption) if lines else None


def sparsities(run: Run) -> Figure | None:
    """Expected sparsity of each kind of units against its target."""
    lines = []
    for i, kind in enumerate(_kinds(run)):
        lines += _of(run, _key("expected", kind), kind or "overall", i)
        lines += _of(run, _key("target", kind), f"target: {kind or 'overall'}", i, dashed=True)
    caption = "Expected share removed; dashed: the target in force. Overall: of parameters."
    return Figure("Sparsity", chart(lines, "steps", from_zero=True), caption) if lines else None


def multipliers(run: Run, order: int) -> Figure | None:
    """The Lagrange multipliers of the linear (1) or the quadratic (2) term."""
    lines = []
    for i, kind in enumerate(_kinds(run)):
        key = f"metrics/train/lambda_{order}{'_' + kind if kind else ''}"
        if key in run.metrics and np.any(run.metrics[key].values):
            lines += _of(run, key, kind or "overall", i)
    term = {1: "linear", 2: "quadratic"}[order]
    return Figure(f"Multipliers of the {term} term", chart(lines, "steps")) if lines else None


def _kinds(run: Run) -> list[str]:
    """What has a sparsity: "" for the whole model, then kinds of units; a place here is a line's colour."""
    return [kind for kind in ("", *KINDS) if _key("expected", kind) in run.metrics]


def lagrangian(run: Run) -> Figure | None:
    """The Lagrangian term of the loss."""
    lines = _of(run, "loss/train/lag_loss", "Lagrangian", 0)
    return (
        Figure("Lagrangian", chart(lines, "steps"), "What the loss adds for missed targets.")
        if lines
        else None
    )


def throughput(run: Run) -> Figure | None:
    """Training tokens a second."""
    lines = _of(run, THROUGHPUT, "tokens/s", 0)
    return (
        Figure("Tokens a second", chart(lines, "steps", from_zero=True), "Over all devices.")
        if lines
        else None
    )


def _key(side: str, kind: str) -> str:
    return f"metrics/train/{side}_{kind + '_' if kind else ''}sparsity"


def _of(run: Run, key: str, name: str, colour: int, dashed: bool = False) -> list[Line]:
    series = run.metrics.get(key)
    return [line(name, series.steps, series.values, colour, dashed)] if series else []


def _held(steps: NDArray, values: NDArray, end: int) -> tuple[NDArray, NDArray]:
    """Points of a value that holds until it changes, as corners of steps, up to `end`."""
    x = np.append(np.repeat(steps, 2)[1:], max(end, steps[-1]))
    return x, np.repeat(values, 2)


def _thinned(count: int, caption: str) -> str:
    return (
        f"{caption} Each point is the mean of {-(-count // MAX_POINTS)} steps."
        if count > MAX_POINTS
        else caption
    )


# --------------------------------------------------------------------- gates


def mask_maps(history: MaskHistory) -> list[Figure]:
    """Maps of what the gates hold open, over time."""
    if not history.steps:
        return []
    columns = f"Columns: evaluations, step {history.steps[0]:,} to {history.steps[-1]:,}."
    layers = f"Rows: layers, the first on top. {columns}"
    figures = []
    for kind, gates in history.blocks.items():
        title = f"Which {_BLOCKS[kind]} stay"
        closed = ", ".join(map(str, history.closed(kind))) or "none"
        caption = f"{layers} Closed in the end, counted from 0: {closed}."
        figures.append(Figure(title, _image(gates, title), caption))
    if history.intermediate is not None:
        title = "How much of each MLP stays"
        least, most = history.intermediate[:, -1].min(), history.intermediate[:, -1].max()
        caption = f"{layers} In the end {least:.0%} to {most:.0%}."
        figures.append(Figure(title, _image(history.intermediate, title), caption))
    if history.hidden is not None:
        title = "Which hidden dimensions stay"
        caption = f"Rows: dimensions, neighbours merged. {columns}"
        figures.append(Figure(title, _image(history.hidden, title), caption, wide=True))
    return figures + [_heads(kind, gates, history.steps) for kind, gates in history.heads.items()]


def _heads(kind: str, gates: list[NDArray], steps: list[int]) -> Figure:
    shown = moments(len(steps))
    cells = [
        f"<figure>{_image(gates[i], f'{kind} after step {steps[i]}')}"
        f"<figcaption>step {steps[i]:,}</figcaption></figure>"
        for i in shown
    ]
    caption = "Rows: layers, the first on top. Columns: heads."
    return Figure(
        f"Which {_HEADS[kind]} stay", f'<div class="multiples">{"".join(cells)}</div>', caption, wide=True
    )


def _image(values: NDArray, alternative: str) -> str:
    return f'<img class="map" src="{png(pooled(values))}" alt="{escape(alternative, quote=True)}">'


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], raw: frozenset[int] | set[int] = frozenset()
) -> str:
    """An HTML table of text; columns in `raw` hold HTML."""
    header = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>"
        + "".join(f"<td>{cell if i in raw else escape(cell)}</td>" for i, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>'
