"""Mistral's faulty pre-tokenizer is replaced where it is one, and nobody else is warned."""

import json
import logging

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

from llmshearing.data import mistral
from llmshearing.data.tokenizer import load_tokenizer
from llmshearing.datasets.manifest import read_manifest
from tests.data.preparing import run

TEXT = "NaOH eBay pH a/b\n/c 123"
LLAMA3 = mistral.FAULTY.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def write(folder, pattern=mistral.FAULTY, size=110_000, model=None, extra=(), config=None, alone=False):
    """A byte-level tokenizer without merges: its pieces are those of the pre-tokenizer, letter by letter."""
    letters = {letter: i for i, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    words = ["NaOH", "Na", "OH", "ĠeBay", "Ġe", "Bay", "ĠpH", "Ġp", "H"]
    letters |= {word: len(letters) + i for i, word in enumerate(words) if word not in letters}
    letters |= {f"¤{i}¤": len(letters) + i for i in range(size - len(letters))}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="¤0¤"))
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = split if alone else pre_tokenizers.Sequence([split, bytes_])
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in extra])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"} | (config or {}))
    )
    if model is not None:
        (folder / "config.json").write_text(json.dumps(model))
    return folder


def pieces(definition):
    tokenizer = Tokenizer.from_str(definition.decode())
    return [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(TEXT)]


@pytest.mark.parametrize(
    ("settings", "fixed"),
    [
        ({"model": {"model_type": "mistral", "transformers_version": "4.44.0"}}, True),
        ({"model": {"model_type": "mistral3", "transformers_version": "4.57.6"}}, True),
        ({"model": {"model_type": "ministral3", "transformers_version": "5.0.0"}}, True),
        ({"model": {"model_type": "llama", "transformers_version": "4.57.6"}}, False),
        ({"model": {"model_type": "llama", "transformers_version": "4.44.0"}}, False),
        ({"model": {"model_type": "qwen2"}}, False),
        ({"model": {"transformers_version": "4.57.6"}}, False),
        ({}, False),
        ({"size": 500, "model": {"model_type": "mistral"}}, False),  # a small one of its own
        ({"size": 500, "extra": ["[INST]", "[AVAILABLE_TOOLS]", "[TOOL_CALLS]"]}, True),  # Tekken's own
        ({"extra": ["[INST]"], "model": {"model_type": "llama"}}, False),
        ({"size": 500, "config": {"fix_mistral_regex": True}}, True),
        ({"model": {"model_type": "mistral"}, "config": {"fix_mistral_regex": False}}, False),
        ({"pattern": LLAMA3, "model": {"model_type": "mistral"}}, False),
        ({"pattern": mistral.RIGHT, "model": {"model_type": "mistral"}}, False),
    ],
)
def test_the_faulty_expression_is_replaced_where_it_is_mistrals(tmp_path, caplog, settings, fixed):
    caplog.set_level(logging.INFO)
    logging.getLogger("transformers").propagate = True
    loaded = load_tokenizer(str(write(tmp_path / "big", **settings)))
    assert loaded.fix_mistral_regex is loaded.record["fix_mistral_regex"] is fixed
    is_split = {"Na", "OH"} <= set(pieces(loaded.definition))
    assert is_split is (fixed or settings.get("pattern") == mistral.RIGHT)
    assert "incorrect" not in caplog.text
    assert ("is replaced; --fix_mistral_regex false keeps it" in caplog.text) is fixed


def test_the_replacement_is_that_of_transformers(tmp_path):
    folder = write(tmp_path / "big", model={"model_type": "mistral", "transformers_version": "4.44.0"})
    theirs = AutoTokenizer.from_pretrained(folder, fix_mistral_regex=True)
    ours = load_tokenizer(str(folder))
    assert [list(ids) for ids in ours.encode([TEXT])] == theirs([TEXT], add_special_tokens=False).input_ids
    assert pieces(ours.definition) == pieces(theirs.backend_tokenizer.to_str().encode())
    faulty = load_tokenizer(str(folder), fix_mistral_regex=False)
    assert pieces(faulty.definition) != pieces(ours.definition)
    assert faulty.sha256 != ours.sha256


@pytest.mark.parametrize("alone", [True, False])
def test_it_can_be_wanted(tmp_path, alone):
    """Where nothing tells whose it is, and where the expression stands alone."""
    folder = write(tmp_path / "big", size=500, alone=alone)
    assert "NaOH" in pieces(load_tokenizer(str(folder)).definition)
    assert "NaOH" not in pieces(load_tokenizer(str(folder), fix_mistral_regex=True).definition)
    right = write(tmp_path / "right", size=500, pattern=mistral.RIGHT, alone=alone)
    assert not load_tokenizer(str(right), fix_mistral_regex=True).fix_mistral_regex
    other = write(tmp_path / "other", size=500, pattern=LLAMA3, alone=alone)
    with pytest.raises(ValueError, match="neither the faulty expression nor the right one"):
        load_tokenizer(str(other), fix_mistral_regex=True)


def test_the_command_has_the_option_and_the_manifest_records_it(monkeypatch, tmp_path, text):
    folder = write(tmp_path / "big", size=500)
    for word, fixed in (("auto", False), ("true", True), ("false", False)):
        run(monkeypatch, text, tmp_path / word, folder, "--fix_mistral_regex", word)
        assert read_manifest(tmp_path / word).tokenizer["fix_mistral_regex"] is fixed
    with pytest.raises(FileExistsError, match="has other special tokens, merges or rules than"):
        run(monkeypatch, text, tmp_path / "true", folder)
