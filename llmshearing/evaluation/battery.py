"""The suite `offline`: multiple choice, cloze and generation from files that need no hub.

Its documents come from two archives of the package index (`fetching`), and lie as `NAME.jsonl` in a folder
of the user's cache, beside `battery.json`:

    {"prompt": "The most reasonable goal of ... is", "choices": ["Buy iBooks", ...], "answer": 3}
    {"prompt": "Today I go. Yesterday I went. Today I abandon. Yesterday I", "target": "abandoned"}

Which documents, and in which order, follows from their text alone, so `--limit 200` means the same 200
everywhere. Several tasks are put differently than in their archive: small base models answer "a" or "b" at
random, but do prefer one of two sentences.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

MANIFEST = "battery.json"
_SHOTS = 5
Document = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A task of the battery.

    Attributes:
        archive: name of the archive, and `member` of the file in it.
        kind: `choice`, `cloze` (the model's greedy continuation is the target) or `generation`.
        metric: what counts.
        make: documents from what the file holds.
        most: documents to keep.
    """

    archive: str
    member: str
    kind: str
    metric: str
    make: Callable[[Any], Iterable[Document]]
    most: int = 2000


def selected(documents: Iterable[Document], most: int) -> list[Document]:
    """At most `most` different documents, in the order of the SHA-256 of their text."""
    ordered = {sha256(_line(document).encode()).hexdigest(): document for document in documents}
    return [ordered[digest] for digest in sorted(ordered)][:most]


def documents_of(name: str, raw: bytes) -> list[Document]:
    """The documents of a task, from the file in its archive."""
    task = BATTERY[name]
    if task.member.endswith(".jsonl"):
        found: Any = [json.loads(line) for line in raw.splitlines() if line.strip()]
    else:
        found = json.loads(raw)["examples"]
    return selected(task.make(found), task.most)


def as_lines(documents: Iterable[Document]) -> bytes:
    """Documents as a JSONL file."""
    return "".join(f"{_line(document)}\n" for document in documents).encode()


def read_manifest(cache: Path) -> dict[str, Any]:
    """Versions of the archives and the SHA-256 of each task's file.

    Raises:
        FileNotFoundError: when nothing has been fetched there.
        ValueError: when it is from an earlier version of this package.
    """
    path = cache / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"The suite `offline` needs its documents in {cache}, where there is no {MANIFEST}: "
            "`llmshearing evaluate --fetch` gets them through the package index (405 MB, of which 6 MB stay)."
        )
    try:
        manifest = json.loads(path.read_text())
        known = {name for name, task in manifest["tasks"].items() if isinstance(task["sha256"], str)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        known = set()
    if known != set(BATTERY):
        raise ValueError(f"{path} lists other tasks than this version has: `llmshearing evaluate --fetch`.")
    return manifest


def read_documents(name: str, cache: Path) -> list[Document]:
    """The documents of a task that were fetched.

    Raises:
        FileNotFoundError: when they were not.
        ValueError: when the file has changed since.
    """
    expected = read_manifest(cache)["tasks"][name]["sha256"]
    raw = (cache / f"{name}.jsonl").read_bytes()
    if sha256(raw).hexdigest() != expected:
        raise ValueError(
            f"{cache / name}.jsonl has changed since it was fetched: `llmshearing evaluate --fetch`."
        )
    return [json.loads(line) for line in raw.splitlines()]


def task_config(name: str, cache: Path) -> Mapping[str, Any]:
    """The task's configuration for lm-eval, its documents included.

    Raises:
        FileNotFoundError: when the documents have not been fetched.
    """
    documents = read_documents(name, cache)

    def load(**_: Any) -> Mapping[str, Any]:
        from datasets import Dataset

        return {"test": Dataset.from_list(documents)}

    shared = {
        "task": name,
        "custom_dataset": load,
        "test_split": "test",
        "doc_to_text": "prompt",
        "metadata": {"version": 1},
    }
    return {**shared, **_KINDS[BATTERY[name].kind]}


_ACCURACY = {"aggregation": "mean", "higher_is_better": True}
_KINDS: dict[str, dict[str, Any]] = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": metric, **_ACCURACY} for metric in ("acc", "acc_norm")],
    },
    "cloze": {
        "output_type": "loglikelihood",
        "doc_to_target": "{{' ' + target}}",  # lm-eval puts nothing between the two here
        "metric_list": [{"metric": "acc", **_ACCURACY}],
    },
    "generation": {
        "output_type": "generate_until",
        "doc_to_target": "target",
        "generation_kwargs": {"until": [".", "\n"], "max_gen_toks": 16, "do_sample": False},
        "filter_list": [
            {"name": "stripped", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}
        ],
        "metric_list": [{"metric": "exact_match", **_ACCURACY}],
    },
}


def _line(document: Document) -> str:
    return json.dumps(document, ensure_ascii=False, sort_keys=True)


def _choice(prompt: str, scores: Mapping[str, float]) -> Document | None:
    """A question with one right answer; None where several count as right, or none does."""
    right = [index for index, score in enumerate(scores.values()) if score > 0]
    choices = [" ".join(choice.split()) for choice in scores]
    if len(right) != 1 or len(set(choices)) != len(choices) or not all(choices):
        return None
    return {"prompt": prompt.strip(), "choices": choices, "answer": right[0]}


def _questions(before: str = "", after: str = "") -> Callable[[Any], Iterator[Document]]:
    """Questions as they are, between `before` and `after`."""

    def make(examples: Any) -> Iterator[Document]:
        for example in examples:
            if found := _choice(f"{before}{example['input'].strip()}{after}", example["target_scores"]):
                yield found

    return make


_PAIR = re.compile(r' a " (?P<a>.+?) " b " (?P<b>.+?) " \?$')


def _adjectives(examples: Any) -> Iterator[Document]:
    """The order of adjectives: which of two noun phrases is the likelier."""
    for example in examples:
        if pair := _PAIR.search(example["input"]):
            scores = {pair[letter]: example["target_scores"][letter] for letter in "ab"}
            if found := _choice("I saw the", scores):
                yield found


def _dialogues(examples: Any) -> Iterator[Document]:
    """A dialogue with a gap: the likeliest of its completions, each with what follows the gap."""
    for example in examples:
        _, _, dialogue = example["input"].partition("Context:")
        before, gap, after = dialogue.partition("<MASK>")
        if not gap or "<MASK>" in after or not before.strip():
            continue
        scores = {f"{phrase.strip()}{after}": score for phrase, score in example["target_scores"].items()}
        if found := _choice(before, scores):
            yield found


def _facts(examples: Any) -> Iterator[Document]:
    """The last word or words of a statement that has only one completion, after solved examples."""
    for example in examples:
        targets = example["target"] if isinstance(example["target"], list) else [example["target"]]
        if len(targets) == 1 and targets[0].strip():
            yield {"input": example["input"], "target": targets[0]}


def _solved(form: str) -> Callable[[Any], Iterator[Document]]:
    """Questions with a short answer in words, after the same solved examples.

    Args:
        form: of a question and its answer, with {input} and {target}, which ends with the answer and a stop.
    """
    question = form.partition("{target}")[0]

    def make(examples: Any) -> Iterator[Document]:
        pairs = [{"input": str(e["input"]).strip(), "target": str(e["target"]).strip()} for e in examples]
        ordered = selected(pairs, len(pairs))
        shots = "".join(form.format(**pair) for pair in ordered[:_SHOTS])
        for pair in ordered[_SHOTS:]:
            prompt = shots + question.format(input=pair["input"])
            yield {"prompt": prompt.rstrip(), "target": pair["target"]}

    return make


def _solved_facts(examples: Any) -> Iterator[Document]:
    return _solved("{input} {target}.\n")(_facts(examples))


_OPTION = re.compile(r"^[A-D]\. (?:[A-D]\.)?", re.MULTILINE)


def _logic(lines: Any) -> Iterator[Document]:
    """LogiQA: the likeliest of four statements after passage and question."""
    for line in lines:
        body, *options = _OPTION.split(line["input"][-1]["content"].rpartition("Answer:")[0])
        passage, mark, question = body.partition("Question:")
        if len(options) != len("ABCD") or not mark:
            continue
        scores = {
            option.strip(): letter == line["ideal"] for option, letter in zip(options, "ABCD", strict=True)
        }
        prompt = f"{passage.strip()}\nQuestion: {question.strip()}\nAnswer:"
        if found := _choice(prompt, scores):
            yield found


_INTENT = "What is the intent of the utterance?\n"
_PROVERB = "\nThis narrative is a good illustration of the following proverb:"
# Name -> task. The members lie below the folder of tasks of their archive, which `fetching` knows.
BATTERY: dict[str, Task] = {
    "hyperbaton": Task("bigbench", "hyperbaton/task.json", "choice", "acc", _adjectives),
    "goal_step_wikihow": Task(
        "bigbench", "goal_step_wikihow/goal_inference/task.json", "choice", "acc_norm", _questions()
    ),
    "social_iqa": Task(
        "bigbench", "social_iqa/task.json", "choice", "acc_norm", _questions(after="\nAnswer:")
    ),
    "timedial": Task("bigbench", "timedial/task.json", "choice", "acc", _dialogues),
    "intent_recognition": Task(
        "bigbench", "intent_recognition/task.json", "choice", "acc_norm", _questions(_INTENT, "\nIntent:")
    ),
    "abstract_narrative_understanding": Task(
        "bigbench",
        "abstract_narrative_understanding/4_distractors/task.json",
        "choice",
        "acc_norm",
        _questions("Narrative: ", _PROVERB),
    ),
    "logiqa_en": Task("evals", "logiqa/logiqa.jsonl", "choice", "acc_norm", _logic),
    "qa_wikidata": Task("bigbench", "qa_wikidata/task.json", "cloze", "acc", _solved_facts, 500),
    "past_tense": Task(
        "bigbench",
        "linguistic_mappings/past_tense_json/task.json",
        "generation",
        "exact_match",
        _solved("Today I {input}. Yesterday I {target}. "),
    ),
    "two_digit_addition": Task(
        "bigbench",
        "arithmetic/2_digit_addition/task.json",
        "generation",
        "exact_match",
        _solved("{input} {target}.\n"),
    ),
}
