"""Tables of docs/evidence.md and README.md from the result files, between marks that name these.

    python -m benchmarks.evidence

`<!-- NAME -->` begins what `benchmarks/results/NAME.json` gives, `<!-- end of NAME -->` ends it.

Example:

    python -m benchmarks.evidence
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS
from benchmarks.leaderboard import page
from llmshearing import cli
from llmshearing.evaluation.results import Measured, Score, score_rows, tasks_of

ROOT = Path(__file__).parents[1]
EVIDENCE = ROOT / "docs" / "evidence.md"
PAGES = (ROOT / "README.md", EVIDENCE)
Result = Mapping[str, Any]


def layer_schemes(result: Result) -> str:
    """What `benchmarks.layer_schemes` measured: schemes by layers that stay."""
    kept = [str(each) for each in result["config"]["kept"]]
    rows = [["scheme", *(f"{each} layers" for each in kept)]]
    for name, found in result["values"].items():
        if name != "source":
            rows.append([name, *(page.spread(found[each]["values"]) for each in kept)])
    return f"The source: {result['values']['source']:.3f}.\n\n" + page.markdown(rows)


def sparsity_quality(result: Result) -> str:
    """What `benchmarks.sparsity_quality` measured, a line for each way to find masks."""
    rows = [["mask", "loss"]]
    for name, found in result["values"].items():
        rows.append([name, page.spread(found if isinstance(found, list) else [found])])
    return page.markdown(rows)


def oneshot(result: Result) -> str:
    """What `benchmarks.oneshot` measured: a line for each shape, methods side by side."""
    methods = [name for name in result["values"] if name != "source"]
    rows = [["shape", "parameters", *methods]]
    for shape, sizes in result["config"]["shapes"].items():
        losses = [page.spread(result["values"][method][shape]["values"]) for method in methods]
        rows.append([shape, f"{sizes['parameters']:,}", *losses])
    return f"The source: {result['values']['source']:.3f}.\n\n" + page.markdown(rows)


def constraints(result: Result) -> str:
    """What `benchmarks.constraints` measured, a line for each constraint."""
    stages = ("just pruned", "after continued pre-training")
    off = "largest distance of the overall sparsity from its target"
    rows = [["constraint", *stages, off]]
    for name, found in result["values"].items():
        losses = [page.spread([run[stage] for run in found["runs"]]) for stage in stages]
        rows.append([name, *losses, f"{max(run[off] for run in found['runs']):.3f}"])
    return page.markdown(rows)


def tasks(result: Result) -> str:
    """What `benchmarks.tasks` measured: a line for each task, models side by side."""
    models = []
    for name, found in result["values"].items():
        scores = {
            task: Score(task, each["metric"], each["mean"], each["stderr"], each["examples"])
            for task, each in found["tasks"].items()
        }
        models.append(Measured(name, name, "", found["parameters"], scores))
    head, rows = score_rows(models, tasks_of(models))
    return page.markdown([head, *rows])


def quickstart(result: Result) -> str:
    """What `scripts/quickstart.sh` printed at its end."""
    return "\n".join(["```", *result["values"]["table"], "```"])


TABLES: dict[str, Callable[[Result], str]] = {
    "layer_schemes": layer_schemes,
    "sparsity_quality": sparsity_quality,
    "sparsity_quality_smollm2": sparsity_quality,
    "oneshot": oneshot,
    "constraints": constraints,
    "tasks": tasks,
    "quickstart": quickstart,
}


def content(name: str) -> str:
    """The generated part of a result file."""
    result = json.loads((RESULTS / f"{name}.json").read_text())
    return TABLES[name](result) if name in TABLES else page.block(name, result)


def parts(text: str) -> Sequence[str]:
    """The names of the results that a page shows, in its order."""
    return re.findall(r"<!-- ([\w-]+) -->\n", text)


def filled(text: str) -> str:
    """A page with every part made anew from its result file.

    Raises:
        ValueError: when a part has no end.
    """
    for name in parts(text):
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if end not in text:
            raise ValueError(f"{begin} stands without {end}; add it where the part ends.")
        text = text[: text.index(begin) + len(begin)] + f"\n\n{content(name)}\n\n" + text[text.index(end) :]
    return text


def main() -> None:
    cli.parser("benchmarks.evidence", __doc__).parse_args()
    for page_file in PAGES:
        page_file.write_text(filled(page_file.read_text()))


if __name__ == "__main__":
    cli.run(main)
