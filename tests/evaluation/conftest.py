"""A tiny model with a tokenizer, and two archives that look like those of the suite `offline`."""

import dataclasses
import io
import json
import tarfile
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest
from transformers import LlamaConfig

from llmshearing.evaluation import fetching
from tests.data.conftest import tokenizer_folder
from twins import GROUPED, make

assert tokenizer_folder  # a fixture

LENGTH = 512
VERBS = ["walk", "talk", "call", "jump", "look", "open", "push", "pull"]


def questions(words: str) -> list[dict]:
    return [
        {"input": f"{words} w{7 + i}?", "target_scores": {"w1 w2": i % 2, "w3": (i + 1) % 2}}
        for i in range(6)
    ]


TASKS = {
    "hyperbaton": [
        {"input": f'Order: a " big {c} dog " b " {c} big dog " ?', "target_scores": {"a": 1, "b": 0}}
        for c in ("red", "green", "blue")
    ]
    + [{"input": "no pair here", "target_scores": {"a": 1, "b": 0}}],
    "goal_step_wikihow/goal_inference": questions("goal"),
    "social_iqa": [*questions("who"), {"input": "both?", "target_scores": {"x": 1, "y": 1}}],
    "timedial": [
        {
            "input": "Which phrase best fits the <MASK> span? Context: \nA: w1. We have <MASK>. B: w2.",
            "target_scores": {"two hours ": 1, "ten years": 0},
        }
    ],
    "intent_recognition": questions("Utterance:"),
    "abstract_narrative_understanding/4_distractors": questions("He"),
    "qa_wikidata": [
        *({"input": f"The capital of w{i} is", "target": [f"w{i + 300}"]} for i in range(7)),
        {"input": "The colour of w1 is", "target": ["w2", "w3"]},
    ],
    "linguistic_mappings/past_tense_json": [{"input": verb, "target": f"{verb}ed"} for verb in VERBS],
    "arithmetic/2_digit_addition": [{"input": f"What is 1{i} plus 10?", "target": f"2{i}"} for i in range(8)],
}
LOGIC = {
    "input": [
        {"role": "system", "content": "Instructions"},
        {
            "role": "user",
            "content": "\nPassage: All w1 are w2.Question: Which follows?\n"
            "A. A.w1\nB. B.w2\nC. w3\nD. D.w4\nAnswer:",
        },
    ],
    "ideal": "C",
}


@pytest.fixture(scope="session")
def archives(tmp_path_factory) -> Path:
    """Archives with a few documents of each task, and a file of another task."""
    folder = tmp_path_factory.mktemp("archives")
    bigbench, evals = (fetching.ARCHIVES[name] for name in ("bigbench", "evals"))
    with tarfile.open(folder / bigbench.file, "w:gz") as tar:
        for name, examples in {**TASKS, "another": []}.items():
            content = json.dumps({"examples": examples}).encode()
            member = tarfile.TarInfo(f"{bigbench.tasks}{name}/task.json")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with zipfile.ZipFile(folder / evals.file, "w") as zipped:
        zipped.writestr(f"{evals.tasks}logiqa/logiqa.jsonl", json.dumps(LOGIC) + "\n")
    return folder


@pytest.fixture(scope="session")
def expected(archives) -> dict[str, fetching.Archive]:
    """What `fetching.ARCHIVES` would be if these archives were the published ones."""
    return {
        name: dataclasses.replace(each, sha256=sha256((archives / each.file).read_bytes()).hexdigest())
        for name, each in fetching.ARCHIVES.items()
    }


@pytest.fixture(scope="session")
def cache(archives, expected, tmp_path_factory) -> Path:
    """The documents of the suite `offline`, fetched from the tiny archives."""
    folder = tmp_path_factory.mktemp("cache") / "evaluation"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetching, "ARCHIVES", expected)
        fetching.fetch(folder, archives)
    return folder


@pytest.fixture(scope="session")
def config() -> LlamaConfig:
    return LlamaConfig(
        **{**GROUPED, "max_position_embeddings": LENGTH, "vocab_size": 502}, bos_token_id=0, eos_token_id=1
    )


@pytest.fixture(scope="session")
def hf(tokenizer_folder, config, tmp_path_factory) -> Path:
    """An HF folder of a tiny random model."""
    folder = tmp_path_factory.mktemp("models") / "source"
    make(config).save_pretrained(folder)
    for file in tokenizer_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder
