"""What models can do, side by side: accuracies by lm-eval, and perplexity of any text.

    llmshearing evaluate MODEL [MODEL ...] --suite NAME[,NAME] | --tasks a,b

MODEL is an HF folder, the name of a model on the hub, a checkpoint or a run's folder. A checkpoint is
exported to a temporary folder; that of a pruning run is cut first. Results are kept in `evaluation.json`, so
an evaluation that was interrupted resumes with the next task, and one more model or task costs only itself.
Written to a run's folder (--out), they appear in its report.

Suites:

    sheared      the eleven tasks of Sheared-LLaMA with its shots; needs the hub
    chop         the six tasks of CHOP; needs the hub
    offline      ten tasks from files that `llmshearing evaluate --fetch` gets once; needs no hub
    perplexity   non-overlapping windows of --data, a text file or prepared data

Example:

    llmshearing evaluate models/source models/pruned --suite offline --limit 200
    llmshearing evaluate runs/prune runs/continue --suite perplexity --data data/mds
"""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llmshearing import cli
from llmshearing.commands.hf_folder import Named, as_hf_folder, find
from llmshearing.commands.reference_loss import parse_count
from llmshearing.evaluation import perplexity, results, suites
from llmshearing.evaluation.battery import BATTERY, read_manifest
from llmshearing.evaluation.fetching import fetch
from llmshearing.evaluation.models import (
    DTYPES,
    check_tokenizer,
    load_model,
    load_tokenizer,
    usual_dtype,
)
from llmshearing.evaluation.perplexity import Text
from llmshearing.evaluation.results import EVALUATION, Measured, Score
from llmshearing.evaluation.suites import OFFLINE, PERPLEXITY, SUITES, Choice
from llmshearing.files import check_writable, first_line


@dataclass(frozen=True)
class Job:
    """Something to run on a model.

    Attributes:
        names: of the scores it gives.
        settings: what these depend on beside the model.
        choice: the task of lm-eval; None: the perplexity of a text.
    """

    names: tuple[str, ...]
    settings: dict[str, Any]
    choice: Choice | None = None

    def is_done(self, found: Measured) -> bool:
        """Whether a model has these scores, with these settings."""
        scores = [found.scores.get(name) for name in self.names]
        return all(score is not None and score.settings == self.settings for score in scores)


def main() -> None:
    """The command."""
    args = parse(sys.argv[1:])
    if args.fetch:
        counts = fetch(args.cache, args.archives)
        cli.say(f"{args.cache}: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()))
    if args.models:
        evaluate(args)


def evaluate(args: argparse.Namespace) -> None:
    """Run what each model lacks, keep it, and print the table.

    Raises:
        ValueError: for an unknown suite or task, or tasks whose documents cannot be loaded.
        OSError: when a model or data is missing, or results cannot be written.
    """
    choices = suites.choose(args.suite, args.tasks)
    text = Text(args.data, args.seq_length, args.split, args.limit) if PERPLEXITY in args.suite else None
    jobs = [Job((choice.task,), task_settings(choice, args), choice) for choice in choices]
    if text:
        jobs.append(Job(tuple(perplexity.task_names(text)), text_settings(text, args)))
    models = [find(name) for name in args.models]
    path = args.out / EVALUATION
    check_writable(args.out)
    kept = results.read(path)
    entries = [results.entry(kept, each.name, str(each.place), each.stamp) for each in models]
    missing = [[job for job in jobs if not job.is_done(found)] for found in entries]
    wanted = [job.choice for job in jobs if job.choice and any(job in each for each in missing)]
    tasks = load_tasks(wanted, args.cache) if wanted else {}
    for model, found, left in zip(models, entries, missing, strict=True):
        if left:
            cli.say(f"{model.name}: {len(left)} of {len(jobs)} to run")
        for score in run(model, found, left, tasks, text, args):
            found.scores[score.task] = score
            results.keep(path, found)
    cli.say(results.as_text(*results.score_rows(entries, [name for job in jobs for name in job.names])))
    limit = f" At most {args.limit:,} examples of each task." if args.limit else ""
    unit = "Accuracies in percent, with standard errors." if any(job.choice for job in jobs) else ""
    cli.say(f"{unit}{limit} Kept in {path}.".strip())


def run(
    model: Named,
    found: Measured,
    jobs: Sequence[Job],
    tasks: Mapping[str, Any],
    text: Text | None,
    args: argparse.Namespace,
) -> Iterator[Score]:
    """The scores of a model in these jobs, one after another."""
    if not jobs:
        return
    with as_hf_folder(model) as folder:
        loaded = load_model(folder, args.dtype)
        found.parameters = loaded.num_parameters()
        tokenizer: Any = None
        if _needs_tokenizer(jobs, text):
            tokenizer = load_tokenizer(args.tokenizer or folder, model.name)
            check_tokenizer(tokenizer, loaded, model.name)
        harness_model: Any = None
        for job in jobs:
            if job.choice is None:
                assert text is not None
                yield from perplexity.scores(loaded, tokenizer, text, job.settings)
                continue
            from llmshearing.evaluation import harness  # needs the extra; `load_tasks` has checked that

            harness_model = harness_model or harness.Model(loaded, tokenizer, args.batch_size)
            yield harness.run(harness_model, job.choice, tasks[job.choice.task], args.limit, job.settings)


def _needs_tokenizer(jobs: Sequence[Job], text: Text | None) -> bool:
    return any(job.choice for job in jobs) or (text is not None and text.path.is_file())


def load_tasks(choices: Sequence[Choice], cache: Path) -> dict[str, Any]:
    """Every task with its documents, before a model is loaded.

    Raises:
        ImportError: when lm-eval is not installed.
        ValueError: for a task that does not exist, or whose documents cannot be had.
    """
    if find_spec("lm_eval") is None:
        raise ImportError(
            "Tasks are run by lm-eval, which is not installed: EXTRAS=eval bash scripts/setup.sh does that. "
            "The suite perplexity does not need it."
        )
    from llmshearing.evaluation import harness

    harness.quieten()
    only_ours = all(choice.task in BATTERY for choice in choices)
    manager, known = harness.known_tasks(with_defaults=not only_ours)
    if not only_ours:
        suites.check_names(choices, known)
    wanted = {choice.task: suites.specification(choice, cache) for choice in choices}
    loaded, failed = harness.load_tasks(wanted, manager)
    if failed:
        reasons = "; ".join(f"{name} ({first_line(error)[:120]})" for name, error in failed.items())
        offline = " HF_HUB_OFFLINE=1 forbids downloads." if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
        raise ValueError(
            "These tasks take their documents from the Hugging Face hub, and could not be loaded: "
            f"{reasons}.{offline} The suites {OFFLINE} and {PERPLEXITY} need no hub."
        )
    return loaded


def task_settings(choice: Choice, args: argparse.Namespace) -> dict[str, Any]:
    """What the score of a task depends on beside the model."""
    data = read_manifest(args.cache)["tasks"][choice.task]["sha256"][:16] if choice.task in BATTERY else "hub"
    return {"limit": args.limit, "shots": choice.shots, "dtype": args.dtype, "data": data}


def text_settings(text: Text, args: argparse.Namespace) -> dict[str, Any]:
    """What the perplexity of a text depends on beside the model."""
    source = text.path if text.path.is_file() else text.path / text.split / "index.json"
    state = source.stat()
    data = [str(source.resolve()), state.st_size, state.st_mtime_ns, text.length]
    return {"limit": args.limit, "dtype": args.dtype, "data": data}


def default_cache() -> Path:
    """Where the documents of the suite `offline` are kept: in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmshearing" / "evaluation"


def _names(text: str) -> list[str]:
    return [name for word in text.split(",") if (name := word.strip())]


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line.

    Raises:
        ValueError: for words that do not fit together.
    """
    parser = cli.parser("llmshearing.commands.evaluate", __doc__)
    parser.add_argument(
        "models", metavar="MODEL", nargs="*", help="HF folder, hub name, checkpoint or run folder"
    )
    parser.add_argument("--suite", type=_names, default=[], help=f"of {', '.join([*SUITES, PERPLEXITY])}")
    parser.add_argument(
        "--tasks", type=_names, default=[], help="tasks of lm-eval or of the suite offline: a,b"
    )
    parser.add_argument(
        "--limit", type=parse_count, help="examples of each task, or windows of a domain (all)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("evaluation"), help="folder of the results (evaluation)"
    )
    parser.add_argument("--data", type=Path, help="text file or prepared data, for the suite perplexity")
    parser.add_argument("--split", default="eval_merge", help="folder below prepared data (eval_merge)")
    parser.add_argument("--seq_length", type=parse_count, help="tokens of a window of a text (2048 at most)")
    parser.add_argument(
        "--batch_size", type=parse_count, default=16, help="requests at a time, at first (16)"
    )
    parser.add_argument("--dtype", choices=DTYPES, default=usual_dtype(), help=f"({usual_dtype()} here)")
    parser.add_argument("--tokenizer", type=Path, help="folder, for a model that carries none")
    parser.add_argument(
        "--cache", type=Path, default=default_cache(), help="of the suite offline (%(default)s)"
    )
    parser.add_argument("--fetch", action="store_true", help="get the documents of the suite offline")
    parser.add_argument("--archives", type=Path, help="with --fetch: folder that holds the two archives")
    args = parser.parse_args(words)
    if not args.models and not args.fetch:
        raise ValueError("no MODEL is given: name one or several.")
    if args.models and not (args.suite or args.tasks):
        raise ValueError(f"give --suite ({', '.join([*SUITES, PERPLEXITY])}) or --tasks.")
    if PERPLEXITY in args.suite and args.data is None:
        raise ValueError("--suite perplexity needs --data: a text file, or a folder of prepared data.")
    if args.seq_length == 1:
        raise ValueError(
            "--seq_length is 1; expected 2 or more: the first token of a window is not predicted."
        )
    return args


if __name__ == "__main__":
    cli.run(main)
