"""A small tokenizer, text, and what preparing makes of it."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.data.preparing import run
from tests.data.texts import WORDS, write_text


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory) -> Path:
    """One token a word: <s> 0, </s> 1, w0 2, w1 3, ..."""
    folder = tmp_path_factory.mktemp("tokenizer")
    vocabulary = {word: i for i, word in enumerate(["<s>", "</s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": {"__type": "AddedToken", "content": "</s>", "special": True},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def text(tmp_path) -> Path:
    return write_text(tmp_path / "text")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, tokenizer_folder) -> tuple[Path, Path]:
    """Text and what the command makes of it, to look at only."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as monkeypatch:
        run(monkeypatch, write_text(folder / "text"), folder / "out", tokenizer_folder)
    return folder / "text", folder / "out"
