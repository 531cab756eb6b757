"""Models, tokenizers and results of others given to `evaluate` and `speed`: one line, no code of theirs."""

import errno
import json
import re
import shutil
import tempfile

import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, pre_tokenizers

from command_line import error_line, status, status_of
from hostile import edit_json
from llmshearing.commands import evaluate, speed
from llmshearing.evaluation import models, results
from tests.data.texts import WORDS


@pytest.fixture
def folder(hf, tmp_path):
    """A copy of the tiny model, to be spoiled."""
    (tmp_path / "text.txt").write_text(" ".join(WORDS[i % 11] for i in range(200)))
    return shutil.copytree(hf, tmp_path / "model")


def words(folder):
    text = ["--suite", "perplexity", "--data", folder.parent / "text.txt", "--seq_length", 64]
    return [folder, *text, "--out", folder.parent / "results"]


def rejected(monkeypatch, capsys, *arguments, module=evaluate):
    """What a command that must fail says, in its one line."""
    assert status_of(monkeypatch, module, *arguments) == 2
    return error_line(capsys)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**10}, r"num_hidden_layers is 10000000000 .* at most 10000"),
        ({"hidden_size": 10**9}, r"announces [\d,]+ parameters, and the weights beside it have [\d,]+ bytes"),
        ({"vocab_size": 10**12}, r"announces [\d,]+ parameters"),
        ({"num_hidden_layers": 3}, "would fill with random numbers"),
        ({"hidden_size": "x"}, "cannot load the model in"),
        ({"num_attention_heads": 0}, "cannot load the model in .*ZeroDivisionError"),
        ({"hidden_act": "nope"}, "cannot load the model in .*KeyError"),
        ({"model_type": "x", "auto_map": {"AutoConfig": "evil.X"}}, "contains custom code"),
    ],
)
def test_a_config_that_no_model_has_is_reported(folder, monkeypatch, capsys, changes, message):
    edit_json(folder / "config.json", **changes)
    assert re.search(message, rejected(monkeypatch, capsys, *words(folder)))
    shown = rejected(monkeypatch, capsys, folder, "--out", folder.parent / "speed", module=speed)
    assert re.search(message, shown)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "[1]", "config.json holds a list; expected an object"),
        ("config.json", "[" * 100_000, "config.json is not JSON"),
        ("model.safetensors", "x" * 100_000, "cannot load the model in"),
        ("tokenizer.json", "{}", "tokenizer in .* cannot be loaded"),
        ("tokenizer.json", "[]", "tokenizer in .* cannot be loaded"),
        ("tokenizer_config.json", "[" * 100_000, "tokenizer in .* cannot be loaded"),
        (
            "tokenizer_config.json",
            '{"tokenizer_class": "X", "auto_map": {"AutoTokenizer": ["evil.X", null]}}',
            "contains custom code",
        ),
    ],
)
def test_a_broken_file_of_a_model_is_reported(folder, monkeypatch, capsys, file, content, message):
    (folder / file).write_text(content)
    assert re.search(message, rejected(monkeypatch, capsys, *words(folder)))


def test_a_model_that_does_not_fit_in_memory_is_named(folder, monkeypatch, capsys):
    def out_of_memory(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", out_of_memory)
    said = rejected(monkeypatch, capsys, *words(folder))
    assert said == f"error: The model in {folder} does not fit in memory."


def test_a_tokenizer_of_a_different_model_is_named(folder, monkeypatch, capsys):
    stored = json.loads((folder / "tokenizer.json").read_text())
    stored["model"]["vocab"]["w499"] = 502
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    said = rejected(monkeypatch, capsys, *words(folder))
    assert "has ids up to 502, its model 502 rows: it is the tokenizer of a different model" in said


def test_a_regular_expression_that_gives_up_is_named(folder, monkeypatch, capsys):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    split = pre_tokenizers.Split(Regex(r"(a+)+$"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.Whitespace()])
    tokenizer.save(str(folder / "tokenizer.json"))
    text = folder.parent / "text.txt"
    text.write_text("w1 " * 200 + "a" * 40 + "!")
    assert "text.txt: tokenizer of the model cannot" in rejected(monkeypatch, capsys, *words(folder))
    arguments = ["oneshot", folder, folder.parent / "out", "--data", text, "--method", "activation"]
    assert status(["llmshearing", *map(str, arguments), "--length", "64", "n_layers=1"]) == 2
    assert "regular expression in it may take for ever" in capsys.readouterr().err


def test_a_perplexity_beyond_all_numbers_is_infinite(folder, monkeypatch, capsys):
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "lm_head.weight": weights["lm_head.weight"] * 1e9}, folder / "model.safetensors")
    assert status_of(monkeypatch, evaluate, *words(folder)) == 0
    assert "perplexity  inf" in capsys.readouterr().out


def test_a_window_of_one_token_predicts_nothing(folder, monkeypatch, capsys):
    assert "expected 2 or more" in rejected(monkeypatch, capsys, *words(folder), "--seq_length", 1)


def spoil(path, **values):
    stored = json.loads(path.read_text())
    (score,) = stored["models"][0]["scores"].values()
    target = score if next(iter(values)) in score else stored["models"][0]
    target.update(values)
    path.write_text(json.dumps(stored))


@pytest.mark.parametrize(
    "values",
    [
        {"stderr": "x"},
        {"value": None},
        {"metric": ["x"]},
        {"parameters": "x"},
        {"model": 7},
        {"speeds": [1]},
        {"speeds": {"1 x 16": 3}},
        {"speeds": {"1 x 16": {"decode": "x"}}},
    ],
)
def test_results_of_other_types_are_rejected(tmp_path, values):
    score = results.Score("a", "acc", 0.5, 0.1, 9)
    results.write(tmp_path / "e.json", [results.Measured("m", "/m", "1", 7, {"a": score})])
    spoil(tmp_path / "e.json", **values)
    with pytest.raises(ValueError, match="does not hold results as this package writes them"):
        results.read(tmp_path / "e.json")


@pytest.mark.parametrize(
    "text", ["{}", "[]", "null", '{"tasks": 3}', '{"tasks": {"hyperbaton": 3}}', "[" * 100_000, "{"]
)
def test_documents_whose_list_is_broken_are_fetched_again(folder, tmp_path, monkeypatch, capsys, text):
    (tmp_path / "battery.json").write_text(text)
    said = rejected(monkeypatch, capsys, folder, "--suite", "offline", "--cache", tmp_path)
    assert "battery.json lists other tasks than this version has" in said


@pytest.mark.parametrize("module", [evaluate, speed])
def test_a_folder_that_cannot_be_written_to_is_found_before_a_model_is_loaded(
    folder, monkeypatch, capsys, module
):
    def denied(dir):
        raise PermissionError(errno.EACCES, "Permission denied", str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", denied)
    (folder.parent / "results").mkdir()
    monkeypatch.setattr(module, "load_model", lambda *_: pytest.fail("a model is loaded"))
    more = words(folder) if module is evaluate else [folder, "--out", folder.parent / "results"]
    assert "where this process may not write" in rejected(monkeypatch, capsys, *more, module=module)
