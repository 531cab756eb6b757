"""Conversations, templates and models of others given to `llmshearing tune`, and a training that diverges."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from command_line import error_line, status
from hostile import edit_json
from llmshearing.tuning import templates

pytest.importorskip("trl")
SETTINGS = ["batch_size=2", "held_out=2", "answers=1", "answer_tokens=4", "max_length=128"]
GOOD = [{"conversations": [{"from": "human", "value": "w1 w2"}, {"from": "gpt", "value": "w7"}]}] * 12


@pytest.fixture
def folder(hf, tmp_path):
    """A copy of the tiny model, to be spoiled."""
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, GOOD)))
    return shutil.copytree(hf, tmp_path / "model")


def tune(folder, *settings, steps=1):
    data = ["--data", str(folder.parent / "chat.jsonl")]
    out = folder.parent / "out"
    code = status(
        ["llmshearing", "tune", str(folder), str(out), *data, f"max_steps={steps}", *SETTINGS, *settings]
    )
    assert out.exists() == (code == 0)
    return code


def rejected(capsys, folder, *settings, steps=1):
    """What a command that must fail says, in its one line."""
    assert tune(folder, *settings, steps=steps) == 2
    return error_line(capsys)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[" * 100_000, "1 that are not JSON"),
        ("1" * 5000, "1 that are not JSON"),
        (json.dumps({"messages": [{"role": "user", "content": "\ud800"}]}), "1 with half a character"),
    ],
)
def test_a_bad_record_is_skipped_and_counted(folder, capsys, line, reason):
    with (folder.parent / "chat.jsonl").open("a") as file:
        file.write(f"\n{line}")
    assert tune(folder, "template=sheared", "max_bad=0.5") == 0
    assert f"12 of 13 conversations can be used; skipped: {reason}" in capsys.readouterr().out


def test_a_list_without_end_is_reported(folder, capsys):
    (folder.parent / "chat.jsonl").write_text("[" * 100_000)
    assert "begins as a JSON list but is not one" in rejected(capsys, folder, "template=sheared")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ raise_exception('no such role') }}", "no such role"),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    ],
)
@pytest.mark.parametrize("place", ["file", "model"])
def test_a_template_that_fails_is_reported(folder, capsys, template, reason, place):
    (folder.parent / "t.jinja").write_text(template)
    edit_json(folder / "tokenizer_config.json", chat_template=template)
    settings = [f"template={folder.parent / 't.jinja'}"] if place == "file" else []
    said = rejected(capsys, folder, *settings)
    assert said.startswith("error: The chat template cannot write a conversation that ends with 'w7'")
    assert reason in said


def test_a_template_that_does_not_end_is_given_up(folder, capsys, monkeypatch):
    monkeypatch.setattr(templates, "RENDERING_SECONDS", 0.3)
    loops = "{% for a in range(9999) %}" * 2
    edit_json(folder / "tokenizer_config.json", chat_template=loops + "{% endfor %}" * 2)
    assert "it did not end in 0 s" in rejected(capsys, folder)


def test_a_template_that_is_no_text_is_named(folder, capsys):
    (folder.parent / "t.jinja").write_bytes(b"\xff")
    assert "which is not text in UTF-8" in rejected(capsys, folder, f"template={folder.parent / 't.jinja'}")


def test_weights_that_are_not_finite_are_named_before_the_training(folder, capsys):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    said = rejected(capsys, folder, "template=sheared")
    assert "NaN or infinite" in said
    assert "model.norm.weight" in said


def test_a_training_that_diverges_writes_nothing(folder, capsys):
    said = rejected(capsys, folder, "template=sheared", "learning_rate=1e30", steps=9)
    assert "the training has diverged, and nothing is written. Lower learning_rate" in said


def test_pointers_to_code_do_not_travel(folder):
    files = {
        "config.json": {"auto_map": {"AutoModelForCausalLM": "someone/repo--modeling_x.X"}},
        "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["someone/repo--x.X", None]}},
        "generation_config.json": {"custom_generate": "someone/generate"},
    }
    for name, values in files.items():
        edit_json(folder / name, **values)
    assert tune(folder, "template=sheared") == 0
    for name, values in files.items():
        assert not values.keys() & json.loads((folder.parent / "out" / name).read_text()).keys()
