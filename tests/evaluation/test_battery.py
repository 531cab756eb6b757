"""The suite `offline`: what is read out of the archives, in which order, and what is rejected."""

import json
from dataclasses import replace

import pytest

from llmshearing.evaluation import fetching
from llmshearing.evaluation.battery import BATTERY, as_lines, read_documents, read_manifest, selected


def test_every_task_is_read_from_its_archive(cache):
    counts = {name: len(read_documents(name, cache)) for name in BATTERY}
    assert counts == {
        "hyperbaton": 3,
        "goal_step_wikihow": 6,
        "social_iqa": 6,
        "timedial": 1,
        "intent_recognition": 6,
        "abstract_narrative_understanding": 6,
        "logiqa_en": 1,
        "qa_wikidata": 2,
        "past_tense": 3,
        "two_digit_addition": 3,
    }
    assert {name: task["documents"] for name, task in read_manifest(cache)["tasks"].items()} == counts


def test_documents_ask_what_a_base_model_can_answer(cache):
    first = {name: read_documents(name, cache)[0] for name in BATTERY}
    assert first["hyperbaton"]["prompt"] == "I saw the"
    assert first["hyperbaton"]["choices"][first["hyperbaton"]["answer"]].startswith("big ")
    assert first["timedial"] == {
        "prompt": "A: w1. We have",
        "choices": ["two hours. B: w2.", "ten years. B: w2."],
        "answer": 0,
    }
    assert first["logiqa_en"] == {
        "prompt": "Passage: All w1 are w2.\nQuestion: Which follows?\nAnswer:",
        "choices": ["w1", "w2", "w3", "w4"],
        "answer": 2,
    }
    *solved, question = first["qa_wikidata"]["prompt"].split("\n")
    assert len(solved) == 5
    number = int(question.removeprefix("The capital of w").removesuffix(" is"))
    assert first["qa_wikidata"]["target"] == f"w{number + 300}"


def test_no_question_is_among_its_own_solved_examples(cache):
    for document in read_documents("past_tense", cache):
        assert document["target"] not in document["prompt"]
        assert document["prompt"].count("Yesterday") == 6


def test_the_choice_of_documents_follows_from_their_text_alone():
    documents = [{"prompt": f"{i}", "target": "x"} for i in range(50)]
    assert selected(documents, 10) == selected([*documents[::-1], *documents], 10)
    assert selected(documents, 10) == selected(documents, 50)[:10]
    assert selected(documents, 50) != documents


def test_an_archive_that_is_not_the_published_one_is_rejected(archives, expected, tmp_path, monkeypatch):
    wrong = {**expected, "evals": replace(expected["evals"], sha256="0" * 64)}
    monkeypatch.setattr(fetching, "ARCHIVES", wrong)
    with pytest.raises(ValueError, match=r"is not the evals-.*\.whl that was published"):
        fetching.fetch(tmp_path / "cache", archives)
    assert not (tmp_path / "cache").exists()
    with pytest.raises(FileNotFoundError, match=r"get it from a package index by hand .*--archives FOLDER"):
        fetching.fetch(tmp_path / "cache", tmp_path)


def test_documents_that_changed_are_rejected(cache, tmp_path):
    for file in cache.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "timedial.jsonl"
    path.write_bytes(as_lines([{"prompt": "x", "choices": ["a", "b"], "answer": 0}]))
    with pytest.raises(ValueError, match=r"timedial\.jsonl has changed since it was fetched"):
        read_documents("timedial", tmp_path)
    manifest = json.loads((tmp_path / "battery.json").read_text())
    del manifest["tasks"]["timedial"]
    (tmp_path / "battery.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="lists other tasks than this version has"):
        read_documents("hyperbaton", tmp_path)


def test_the_link_is_the_one_that_pip_finds(monkeypatch):
    archive = fetching.ARCHIVES["bigbench"]
    said = (
        "  Found link https://files.example/p/bigbench-0.0.1.tar.gz (from https://i), version: 0.0.1\n"
        f"  Found link https://files.example/p/{archive.file} (from https://i), version: 1.0.0\n"
    )

    def run(command, **_):
        assert command[1:] == ["-m", "pip", "index", "versions", "bigbench", "-vv"]
        return type("Done", (), {"stdout": said, "stderr": ""})

    monkeypatch.setattr(fetching.subprocess, "run", run)
    assert fetching._link(archive) == f"https://files.example/p/{archive.file}"
    said = "ERROR: No matching distribution found\n"
    with pytest.raises(OSError, match=r"pip finds no bigbench-1\.0\.0\.tar\.gz in its index"):
        fetching._link(archive)
