"""The page: its order, its sentences, its style."""

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from llmshearing.files import replacing
from llmshearing.planning.sizes import planned_steps
from llmshearing.report import figures
from llmshearing.report.figures import Figure
from llmshearing.report.maps import MaskHistory
from llmshearing.report.reading import Run, read_run


def write_report(folders: Sequence[Path], path: Path) -> None:
    """Write the report of the runs in `folders` to `path`, whole or not at all.

    Raises:
        FileNotFoundError: when a folder is not a run's.
        FileExistsError: when `path` is a file but not a report.
        ValueError: when a run is named twice, or its files cannot be understood.
        OSError: when the report cannot be written.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; expected a file to write, such as {path}/report.html.")
    if path.exists() and not path.read_bytes().startswith(_PAGE[:15].encode()):
        raise FileExistsError(f"{path} exists and is not a report; choose another file, such as report.html.")
    if twice := [folder for folder in folders if list(folders).count(folder) > 1]:
        raise ValueError(f"{twice[0]} is named twice; name each run once.")
    page = render([read_run(Path(folder)) for folder in folders])
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def render(runs: Sequence[Run]) -> str:
    """The whole page as HTML."""
    parts = [_header(runs), *(_section(run, number) for number, run in enumerate(runs, 1))]
    return _PAGE.format(
        title=escape(", ".join(run.name for run in runs)),
        style=_asset("style.css"),
        body="\n".join(parts),
    )


def sentences(run: Run) -> list[str]:
    """What came out of a run, in plain words."""
    said = []
    if run.prunes and run.steps:
        kinds = figures.convergence(run)
        missed = [(k, e, t) for k, e, t in kinds if abs(e - t) > figures.CONVERGED]
        if kinds and not missed:
            said.append("Every kind of units has reached its target.")
        for kind, expected, target in missed:
            said.append(f"Of {kind}, {expected:.1%} is removed in expectation; the target is {target:.1%}.")
    taught = run.config.distillation
    if taught is not None and taught.kl_weight:
        said.append(
            f"It learns from {taught.teacher or run.config.model.path}: {taught.kl_weight:g} x {taught.loss} "
            f"at temperature {taught.temperature:g} + {taught.ce_weight:g} x cross entropy."
        )
    loss = run.metrics.get(figures.MEAN_LOSS)
    if loss is not None and len(loss.steps) > 1:
        said.append(
            f"The evaluation loss went from {loss.values[0]:.3f} after step {loss.steps[0]:,} to "
            f"{loss.values[-1]:.3f} after step {loss.steps[-1]:,}."
        )
    repeated = [
        f"{domain} {series.values[-1]:.1f} times"
        for domain in run.domains
        if (series := run.domain_metric(domain, "pass")) and series.values[-1] > 1
    ]
    if repeated:
        said.append(f"Data read more than once: {', '.join(repeated)}.")
    return said


def comparison(runs: Sequence[Run]) -> str | None:
    """The last run that continues from another against the one of its shape from scratch."""
    continued = [r for r in runs if figures.kind_of(r) == "continued pre-training"]
    scratch = [r for r in runs if figures.kind_of(r) == "training from scratch"]
    for one in reversed(continued):
        for other in scratch:
            ends = [r.metrics.get(figures.MEAN_LOSS) for r in (one, other)]
            if one.source == other.source and ends[0] and ends[1]:
                a, b = (series.values[-1] for series in ends if series)
                return (
                    f"{one.name} ends {abs(a - b):.3f} nats a token {'below' if a < b else 'above'} "
                    f"{other.name}, which has its shape and was trained from scratch."
                )
    return None


# ----------------------------------------------------------------------- parts


def _header(runs: Sequence[Run]) -> str:
    names = escape(" · ".join(run.name for run in runs))
    compared = comparison(runs)
    lead = f'<p class="lead">{escape(compared)}</p>' if compared else ""
    shown = [
        figures.runs_table(runs),
        figures.story(runs),
        figures.losses_table(runs),
        figures.evaluation_table(runs),
        figures.speed_table(runs),
    ]
    return f"<header><p>Shearing report</p><h1>{names}</h1>{lead}</header><section>{_grid(shown)}</section>"


def _section(run: Run, number: int) -> str:
    history = MaskHistory(run)
    shown = [
        figures.shape_table(run),
        figures.removed_table(run),
        figures.training_loss(run),
        figures.domain_losses(run),
        figures.excess_losses(run),
        figures.domain_weights(run),
        figures.domain_tokens(run),
        figures.sparsities(run),
        figures.lagrangian(run),
        figures.multipliers(run, 1),
        figures.multipliers(run, 2),
        figures.throughput(run),
        *figures.mask_maps(history),
    ]
    said = " ".join(map(escape, sentences(run)))
    kind = escape(figures.kind_of(run))
    asked = f"{run.steps:,} of {planned_steps(run.config):,} steps."
    return (
        f'<section id="run-{number}"><h2>{escape(run.name)} <small>{kind}</small></h2>'
        f"<p>{asked} {said}</p>{_grid(shown)}</section>"
    )


def _grid(shown: Sequence[Figure | None]) -> str:
    return '<div class="figures">' + "".join(_figure(each) for each in shown if each) + "</div>"


def _figure(each: Figure) -> str:
    caption = f"<figcaption>{escape(each.caption)}</figcaption>" if each.caption else ""
    wide = ' class="wide"' if each.wide else ""
    return f"<figure{wide}><h3>{escape(each.title)}</h3>{each.html}{caption}</figure>"


def _asset(name: str) -> str:
    return files("llmshearing.report").joinpath(name).read_text(encoding="utf-8")


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
