"""MDS folders that other programs write: read, or rejected for the true reason."""

import json
import sys

import numpy as np
import pytest
from streaming.base.format.mds import MDSWriter
from streaming.base.util import merge_index

from llmshearing.config import DatasetConfig, LoaderConfig
from llmshearing.data import inspect as inspect_command
from llmshearing.data.merge_data import merge
from llmshearing.datasets.load_text_dataloader import build_text_dataloader
from llmshearing.datasets.remote import Remote
from llmshearing.datasets.sequence_folder import SequenceFolder
from tests.datasets.folders import SEQ_LEN, write_folder

AGAIN = "prepare or copy this folder again"


def write(path, encoding, dtype, samples=12, seq_len=SEQ_LEN, more=(), compression=None):
    """Sequence i holds 10 i, 10 i + 1, ..."""
    columns = {"tokens": encoding} | {name: kind for name, kind, _ in more}
    with MDSWriter(out=str(path), columns=columns, compression=compression, size_limit=400) as writer:
        for i in range(samples):
            tokens = np.arange(10 * i, 10 * i + seq_len).astype(dtype)
            stored = tokens.tobytes() if encoding == "bytes" else tokens
            writer.write({"tokens": stored, **{name: value for name, _, value in more}})
    return path


def contents(folder):
    return [folder[i].tokens.tolist() for i in range(len(folder))]


EXPECTED = [list(range(10 * i, 10 * i + SEQ_LEN)) for i in range(12)]


@pytest.mark.parametrize(
    ("encoding", "dtype"),
    [
        *((f"ndarray:{dtype}", dtype) for dtype in ("uint16", "int16", "uint32", "int32", "int64", "uint64")),
        ("ndarray", "uint32"),
        (f"ndarray:int32:{SEQ_LEN}", "int32"),
        *(("bytes", dtype) for dtype in ("uint16", "int32", "uint32", "int64")),
    ],
)
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_every_type_of_token_is_read_without_a_manifest(tmp_path, encoding, dtype, compression):
    write(tmp_path / "for_ft" / "cc", encoding, dtype, compression=compression)
    folder = SequenceFolder(tmp_path / "for_ft" / "cc", SEQ_LEN, vocab_size=200, length_is_known=False)
    assert contents(folder) == EXPECTED
    assert folder[0].tokens.dtype == np.int64
    assert folder.dtype.itemsize == np.dtype(dtype).itemsize
    section = LoaderConfig(DatasetConfig(str(tmp_path), split="for_ft", max_seq_len=SEQ_LEN))
    loader = build_text_dataloader(section, 4, True, ["cc"], [1.0], vocab_size=200)
    assert next(iter(loader))["input_ids"].shape == (4, SEQ_LEN)


def test_columns_beside_the_tokens_are_left_alone(tmp_path):
    more = [("attention_mask", "ndarray:uint8", np.ones(3, np.uint8)), ("meta", "json", {"a": 1})]
    path = write(tmp_path / "cc", "ndarray:uint32", "uint32", more=more)
    assert contents(SequenceFolder(path, SEQ_LEN)) == EXPECTED


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("remote", [False, True])
def test_shards_in_folders_below(tmp_path, compression, remote):
    """As merge_index leaves what several processes wrote."""
    for part in range(3):
        write_folder(tmp_path / "data" / "cc" / f"part.{part:05}", 7, compression=compression)
    merge_index(str(tmp_path / "data" / "cc"), keep_local=True)
    if remote:
        place = Remote(str(tmp_path / "data"), 0, 10, 200)
        folder = SequenceFolder(tmp_path / "local" / "cc", SEQ_LEN, remote=place, folder="cc")
    else:
        folder = SequenceFolder(tmp_path / "data" / "cc", SEQ_LEN)
    assert contents(folder) == [list(range(i, i + SEQ_LEN)) for i in range(7)] * 3
    assert contents(folder) == [list(range(i, i + SEQ_LEN)) for i in range(7)] * 3


def test_inspect_shows_a_folder_in_parts_once(tmp_path, monkeypatch, capsys):
    for part in range(3):
        write_folder(tmp_path / "cc" / f"part.{part:05}", 7)
    merge_index(str(tmp_path / "cc"), keep_local=True)
    write(tmp_path / "wiki", "ndarray:uint32", "uint32")
    monkeypatch.setattr(sys, "argv", ["inspect", str(tmp_path), "--seq_length", str(SEQ_LEN)])
    inspect_command.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == [["cc", "21", "168", "uint16"], ["wiki", "12", "96", "uint32"]]


def test_parts_that_nobody_merged_are_named(tmp_path):
    write_folder(tmp_path / "cc" / "part.00000", 7)
    write_folder(tmp_path / "cc" / "part.00001", 7)
    with pytest.raises(
        FileNotFoundError, match=r"2 folders below have one, such as part\.00000: .*merge_index"
    ):
        SequenceFolder(tmp_path / "cc", SEQ_LEN)


def test_arrays_are_merged_as_they_are(tmp_path, monkeypatch):
    """Also to a folder whose name looks like a place elsewhere or a user."""
    monkeypatch.chdir(tmp_path)
    inputs = [
        write(tmp_path / name, "ndarray:uint32", "uint32", more=[("set", "str", name)]) for name in "ab"
    ]
    for name in ("s3:x", "~nobody", "gs:y"):
        output = type(tmp_path)(name)
        assert merge(inputs, output) == 24
        merged = SequenceFolder(tmp_path / name, SEQ_LEN)
        assert [merged.domain(i) for i in range(4)] == ["a", "b", "a", "b"]
        assert contents(merged)[::2] == contents(merged)[1::2] == EXPECTED


@pytest.mark.parametrize(
    ("columns", "sample", "message"),
    [
        ({"text": "str"}, {"text": "words"}, r"it has the columns 'text', expected a column 'tokens'"),
        ({"input_ids": "ndarray:int64"}, {"input_ids": np.arange(8)}, r"the columns 'input_ids', expected"),
        ({"tokens": "str"}, {"tokens": "words"}, r"'tokens' is stored as 'str', expected bytes or ndarray"),
        (
            {"tokens": "ndarray:float32"},
            {"tokens": np.ones(8, "f4")},
            r"'ndarray:float32', expected bytes or",
        ),
        (
            {"tokens": "ndarray"},
            {"tokens": np.ones(8, "f4")},
            r"array of float32 of shape \(8,\), expected a row",
        ),
        (
            {"tokens": "ndarray:uint16"},
            {"tokens": np.ones((2, 8), "u2")},
            r"of shape \(2, 8\), expected a row",
        ),
        ({"tokens": "ndarray"}, {"tokens": np.ones(8, "u1")}, r"array of uint8 .*2, 4 or 8 bytes"),
        (
            {"tokens": "ndarray:uint32"},
            {"tokens": np.ones(16, "u4")},
            r"has 16 tokens \(uint32\), expected 8: set",
        ),
        (
            {"tokens": "bytes", "set": "int"},
            {"tokens": bytes(16), "set": 1},
            r"'set' is stored as 'int', expected",
        ),
    ],
)
def test_a_sound_folder_that_cannot_be_read_is_not_called_damaged(tmp_path, columns, sample, message):
    with MDSWriter(out=str(tmp_path / "cc"), columns=columns) as writer:
        writer.write(sample)
    with pytest.raises(ValueError, match=message) as error:
        SequenceFolder(tmp_path / "cc", 8, length_is_known=False)
    assert AGAIN not in str(error.value)


def test_another_format_is_named(tmp_path):
    write_folder(tmp_path / "cc", 3)
    index = json.loads((tmp_path / "cc" / "index.json").read_text())
    index["shards"][0]["format"] = "json"
    (tmp_path / "cc" / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"format is 'json', expected mds: docs/data\.md") as error:
        SequenceFolder(tmp_path / "cc", SEQ_LEN)
    assert AGAIN not in str(error.value)


def test_sequences_of_several_lengths_are_named(tmp_path):
    with MDSWriter(out=str(tmp_path / "cc"), columns={"tokens": "ndarray:uint32"}) as writer:
        for size in (8, 8, 5):
            writer.write({"tokens": np.arange(size, dtype="u4")})
    folder = SequenceFolder(tmp_path / "cc", SEQ_LEN)
    with pytest.raises(
        ValueError, match=r"sequence 2 of it takes 20 bytes, the others 32: sequences of one length"
    ):
        folder[2]


def test_arrays_whose_type_changes_are_named(tmp_path):
    with MDSWriter(out=str(tmp_path / "cc"), columns={"tokens": "ndarray"}) as writer:
        writer.write({"tokens": np.arange(8, dtype="u4")})
        writer.write({"tokens": np.arange(16, dtype="u2")})
    folder = SequenceFolder(tmp_path / "cc", SEQ_LEN)
    with pytest.raises(
        ValueError, match=r"sequence 1 is an array of uint16 of shape \(16,\), expected 8 tokens"
    ):
        folder[1]


@pytest.mark.parametrize(
    ("dtype", "seq_len"),
    [("uint16", 16), ("uint16", 32), ("uint32", 16), ("uint32", 4), ("int64", 4), ("int64", 2)],
)
@pytest.mark.parametrize("vocab_size", [None, 500])
def test_a_wrong_length_makes_no_other_tokens(tmp_path, dtype, seq_len, vocab_size):
    """Twice the tokens have the bytes of wider ones, half of them of narrower ones; the values show it."""
    with MDSWriter(out=str(tmp_path / "cc"), columns={"tokens": "bytes"}) as writer:
        writer.write({"tokens": np.full(seq_len, 300, dtype).tobytes()})
    with pytest.raises(
        ValueError, match=rf"look like .*{seq_len} of {np.dtype(dtype).itemsize} bytes.*: set"
    ):
        SequenceFolder(tmp_path / "cc", SEQ_LEN, vocab_size=vocab_size, length_is_known=False)


@pytest.mark.parametrize("ids", [[0] * 8, [97, 98, 0, 99, 7, 10, 13, 32], [0, 1, 0, 1, 0, 1, 0, 255]])
@pytest.mark.parametrize("dtype", ["uint16", "uint32", "int64"])
@pytest.mark.parametrize("vocab_size", [None, 256])
def test_a_right_length_is_believed(tmp_path, ids, dtype, vocab_size):
    """Also where tokens are few, as bytes are, or padding."""
    with MDSWriter(out=str(tmp_path / "cc"), columns={"tokens": "bytes"}) as writer:
        writer.write({"tokens": np.array(ids, dtype).tobytes()})
    folder = SequenceFolder(tmp_path / "cc", SEQ_LEN, vocab_size=vocab_size, length_is_known=False)
    assert folder[0].tokens.tolist() == ids


def test_the_flag_of_two_bytes_rejects_four(tmp_path):
    write(tmp_path / "cc", "bytes", "uint32")
    with pytest.raises(ValueError, match="are uint32, expected uint16: correct max_seq_len or is_uint16"):
        SequenceFolder(tmp_path / "cc", SEQ_LEN, ["uint16"], length_is_known=False)
