"""Calibration samples of text and of prepared data: the same for a seed, refused where they do not fit."""

import json
import logging

import pytest
import torch

from llmshearing.data.samples import read_samples
from tests.data.texts import WORDS, documents, write_jsonl
from tests.datasets.folders import write_folder

VOCABULARY = len(WORDS) + 2


@pytest.fixture
def files(tokenizer_folder):
    return {path.name: path.read_text() for path in tokenizer_folder.iterdir()}


def samples_of(data, files=None, vocab_size=VOCABULARY, longest=64, **settings):
    return read_samples(data, files or {}, "model", vocab_size, longest, **settings)


def test_text_is_packed_with_the_tokens_around_each_document(tmp_path, files):
    texts = documents(40, seed=3)
    write_jsonl(tmp_path / "a.jsonl", texts)
    ids = samples_of(tmp_path, files, samples=5, length=16)
    assert ids.shape == (5, 16)
    assert ids.dtype == torch.int64
    stream = [i for text in texts for i in (0, *(2 + WORDS.index(word) for word in text.split()), 1)]
    whole = torch.tensor(stream[: len(stream) // 16 * 16]).view(-1, 16)
    assert all(bool((whole == row).all(1).any()) for row in ids)
    assert len({tuple(row.tolist()) for row in ids}) == 5


def test_the_seed_alone_chooses_and_files_of_every_kind_are_read(tmp_path, files, caplog):
    write_jsonl(tmp_path / "deep" / "a.jsonl", documents(60, seed=1))
    (tmp_path / "b.txt").write_text("\n".join(documents(60, seed=2)))
    (tmp_path / "c.bin").write_bytes(b"\0")
    first, again, other = (samples_of(tmp_path, files, samples=8, length=16, seed=s) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert "1 files that are not text are skipped" in caplog.text


def test_fewer_than_the_default_number_is_said_and_fewer_than_asked_for_is_an_error(tmp_path, files, caplog):
    (tmp_path / "a.txt").write_text(" ".join(WORDS))
    with caplog.at_level(logging.WARNING):
        assert samples_of(tmp_path / "a.txt", files, length=50).shape == (10, 50)
    assert "holds 10 sequences of 50 tokens, fewer than 1024" in caplog.text
    with pytest.raises(ValueError, match="holds 10 sequences of 50 tokens, --samples asks for 11"):
        samples_of(tmp_path / "a.txt", files, length=50, samples=11)


def test_prepared_data_is_read_and_may_be_cut(prepared, files):
    _, root = prepared
    for place in (root / "for_prune", root / "for_prune" / "wiki", root / "eval_merge"):
        ids = samples_of(place, files, samples=3, longest=1 << 20)
        assert ids.shape == (3, json.loads((root / "manifest.json").read_text())["seq_length"])
        assert torch.equal(samples_of(place, files, samples=3, length=4), ids[:, :4])
    with pytest.raises(ValueError, match=r"holds the splits .*for_prune"):
        samples_of(root, files)


def test_what_others_prepared_needs_its_length(tmp_path):
    write_folder(tmp_path / "cc", 12)
    assert samples_of(tmp_path, samples=12, length=8).sort(0).values[3].tolist() == list(range(3, 11))
    with pytest.raises(ValueError, match="give --length"):
        samples_of(tmp_path / "cc", samples=2)
    with pytest.raises(ValueError, match="vocabulary has 10"):
        samples_of(tmp_path, samples=12, length=8, vocab_size=10)


def test_data_of_another_tokenizer_is_refused(prepared, files):
    other = json.loads(files["tokenizer.json"])
    other["model"]["vocab"]["more"] = VOCABULARY
    with pytest.raises(ValueError, match="whose vocabulary is not the model's"):
        samples_of(prepared[1] / "for_prune", {"tokenizer.json": json.dumps(other)}, samples=2)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"samples": 0}, "--samples is 0; expected 1 or more"),
        ({"length": 1}, "--length is 1; expected 2 or more"),
        ({"seed": -1}, "--seed is -1"),
        ({"length": 65}, "model has 64 positions"),
        ({"vocab_size": 400}, "tokenizer of a different model"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, files, settings, match):
    (tmp_path / "a.txt").write_text("w1 w2")
    with pytest.raises(ValueError, match=match):
        samples_of(tmp_path, files, **settings)


def test_missing_data_and_tokenizers_are_named(tmp_path, files):
    with pytest.raises(FileNotFoundError, match=r"--data .*none not found"):
        samples_of(tmp_path / "none", files)
    with pytest.raises(FileNotFoundError, match="holds no text"):
        samples_of(tmp_path, files)
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\0")
    with pytest.raises(ValueError, match=r"a\.txt is not text in UTF-8"):
        samples_of(tmp_path, files)
    with pytest.raises(ValueError, match="model carries no tokenizer"):
        samples_of(tmp_path)
