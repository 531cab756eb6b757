"""Which tasks a suite holds, with how many shots, and which of a task's metrics counts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmshearing import cli
from llmshearing.evaluation.battery import BATTERY, task_config

PERPLEXITY = "perplexity"
OFFLINE = "offline"
# What counts where nothing else is said: the first of these that a task has.
PREFERRED = ("acc_norm", "acc", "exact_match", "f1", "perplexity", "word_perplexity")


@dataclass(frozen=True)
class Choice:
    """One task to be run.

    Attributes:
        task: name in lm-eval, or in the battery.
        metric: what counts; None: the first of PREFERRED that the task has.
        shots: solved examples before each question; None: the task's own number.
    """

    task: str
    metric: str | None = None
    shots: int | None = None


SUITES: dict[str, tuple[Choice, ...]] = {
    # Sheared-LLaMA (arXiv 2310.06694, section 3.1 and table 2): shots as there; length-normalised where the
    # published numbers of LLaMA-2-7B are those of acc_norm.
    "sheared": (
        Choice("sciq", "acc", 0),
        Choice("piqa", "acc", 0),
        Choice("winogrande", "acc", 0),
        Choice("arc_easy", "acc", 0),
        Choice("arc_challenge", "acc_norm", 25),
        Choice("hellaswag", "acc_norm", 10),
        Choice("logiqa", "acc_norm", 0),
        Choice("boolq", "acc", 32),
        Choice("lambada_openai", "acc", 0),
        Choice("nq_open", "exact_match", 32),
        Choice("mmlu", "acc", 5),
    ),
    # CHOP, section 4.1: the first three length-normalised.
    "chop": (
        Choice("piqa", "acc_norm", 0),
        Choice("hellaswag", "acc_norm", 0),
        Choice("openbookqa", "acc_norm", 0),
        Choice("winogrande", "acc", 0),
        Choice("sciq", "acc", 0),
        Choice("arc_easy", "acc", 0),
    ),
    OFFLINE: tuple(Choice(name, task.metric, 0) for name, task in BATTERY.items()),
}


def choose(suites: Sequence[str], tasks: Sequence[str]) -> list[Choice]:
    """The tasks of `suites` and `tasks`, in order, each once; the suite `perplexity` has none.

    Raises:
        ValueError: for a suite that does not exist.
    """
    known = [*SUITES, PERPLEXITY]
    for name in suites:
        if name not in known:
            raise ValueError(
                f"Suite {name} does not exist{cli.nearest(name, known) or ';'} "
                f"expected one of {', '.join(known)}."
            )
    chosen = [choice for name in suites for choice in SUITES.get(name, ())]
    usual = {choice.task: choice for choice in SUITES[OFFLINE]}
    chosen += [usual.get(name, Choice(name)) for name in tasks]
    return list(dict.fromkeys(chosen))


def check_names(choices: Sequence[Choice], known: Sequence[str]) -> None:
    """Check that every task exists.

    Args:
        known: names of lm-eval's tasks.

    Raises:
        ValueError: for a task that does not exist, with the nearest name.
    """
    names = {*known, *BATTERY}
    for choice in choices:
        if choice.task not in names:
            raise ValueError(
                f"Task {choice.task} does not exist{cli.nearest(choice.task, names) or ';'} the suite "
                f"{OFFLINE} has {', '.join(BATTERY)}, and `lm-eval ls tasks` lists those of lm-eval."
            )


def specification(choice: Choice, cache: Path) -> str | Mapping[str, object]:
    """What lm-eval loads for a task: its name, or the configuration of one of the battery.

    Raises:
        FileNotFoundError: when the battery's documents have not been fetched.
    """
    return task_config(choice.task, cache) if choice.task in BATTERY else choice.task
