"""What models can do, side by side: a suite of tasks on a source and on what was made of it.

    python -m benchmarks.tasks NAME=MODEL [NAME=MODEL ...] [--suite NAME] [--limit N] [--jobs N] [--name NAME]
        [--tokenizer FOLDER] [--out FOLDER]

MODEL is anything that `llmshearing evaluate` takes: an HF folder, a checkpoint or a run's folder; NAME stands
for it in the table, and shares are those of the first one's mean. `--jobs` models are evaluated at a time, in
processes of their own. Scores are kept in `evaluation.json` below --out, so a measurement that was
interrupted resumes.

Writes `benchmarks/results/tasks.json`, or NAME.json there.

Example:

    python -m benchmarks.tasks source=runs/quickstart/source.pt pruned=runs/quickstart/pruned.pt --limit 200
"""

from argparse import ArgumentTypeError, Namespace
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.common import positive, write_result
from llmshearing import cli
from llmshearing.commands import evaluate as command
from llmshearing.commands.hf_folder import find
from llmshearing.evaluation import results
from llmshearing.evaluation.suites import OFFLINE, SUITES


def named(word: str) -> tuple[str, str]:
    """A model on the command line: its name in the table, and where it lies."""
    name, equals, model = word.partition("=")
    if not (name and equals and model):
        raise ArgumentTypeError(f"{word!r} is not NAME=MODEL")
    return name, model


def scores(model: str, options: Namespace) -> dict[str, Any]:
    """The parameters of a model, and by task its metric, mean, standard error and number of examples."""
    words = [model, "--suite", options.suite, "--out", str(options.out)]
    words += ["--tokenizer", options.tokenizer] if options.tokenizer else []
    arguments = command.parse([*words, "--limit", str(options.limit)] if options.limit else words)
    command.evaluate(arguments)
    place = str(find(model).place)
    found = next(each for each in results.read(options.out / results.EVALUATION) if each.place == place)
    kept = {choice.task: found.scores[choice.task] for choice in SUITES[options.suite]}
    tasks = {
        task: {"metric": of.metric, "mean": of.value, "stderr": of.stderr, "examples": of.examples}
        for task, of in kept.items()
    }
    return {"parameters": found.parameters, "dtype": arguments.dtype, "tasks": tasks}


def measure(models: Mapping[str, str], options: Namespace) -> dict[str, Any]:
    """The scores of every model, `options.jobs` at a time."""
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        found = pool.map(partial(scores, options=options), models.values())
        return dict(zip(models, found, strict=True))


def main() -> None:
    parser = cli.parser("benchmarks.tasks", __doc__)
    parser.add_argument("models", metavar="NAME=MODEL", type=named, nargs="*", help="a model and its name")
    parser.add_argument("--suite", choices=SUITES, default=OFFLINE, help=f"of tasks ({OFFLINE})")
    parser.add_argument("--limit", type=positive, help="examples of each task (all)")
    parser.add_argument("--jobs", type=positive, default=1, help="models at a time (1)")
    parser.add_argument(
        "--tokenizer", metavar="FOLDER", help="for models that carry none, such as from scratch"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/tasks"), help="of the scores (runs/tasks)")
    parser.add_argument("--name", default="tasks", help="of the result (tasks)")
    arguments = parser.parse_args()
    models = dict(arguments.models)
    if not models or len(models) < len(arguments.models):
        raise ValueError("give one NAME=MODEL or several, each with a NAME of its own.")
    config = {"suite": arguments.suite, "limit": arguments.limit, "models": models}
    write_result(arguments.name, config, measure(models, arguments))


if __name__ == "__main__":
    cli.run(main)
