"""Whatever an index or a shard holds: it is read as written, or refused in one line that names the file."""

import copy
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmshearing.datasets.mds_index import is_plain_path
from llmshearing.datasets.remote import Remote
from llmshearing.datasets.sequence_folder import SequenceFolder
from tests.datasets.folders import SEQ_LEN, write_folder

AGAIN = "prepare or copy this folder again"


def spoil(path: Path, **values: object) -> Path:
    """A folder whose first shard's entry has these values."""
    index = json.loads((write_folder(path, 7) / "index.json").read_text())
    index["shards"][0].update(values)
    (path / "index.json").write_text(json.dumps(index))
    return path


@pytest.mark.parametrize(
    "text",
    ["[]", "null", "3", "{}", '{"version": 2}', '{"version": 2, "shards": 3}', "[" * 10**5, '{"shards": ['],
)
def test_an_index_of_unknown_form_is_rejected(tmp_path, text):
    (write_folder(tmp_path / "cc", 3) / "index.json").write_text(text)
    with pytest.raises(ValueError, match=rf"cc/index.json.*: {AGAIN}$"):
        SequenceFolder(tmp_path / "cc", SEQ_LEN)


@pytest.mark.parametrize("entry", ["a", None, [], {}])
def test_a_shard_that_is_none_is_rejected(tmp_path, entry):
    (write_folder(tmp_path / "cc", 3) / "index.json").write_text(
        json.dumps({"version": 2, "shards": [entry]})
    )
    with pytest.raises(ValueError, match=rf"cc/index.json: shard 0: .*: {AGAIN}$"):
        SequenceFolder(tmp_path / "cc", SEQ_LEN)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("samples", 100.0, "samples is 100.0, expected a whole number"),
        ("samples", -1, "samples is -1, expected a whole number"),
        ("samples", 0, "samples is 0, expected a whole number"),
        ("samples", 10**18, "samples is 1000000000000000000, expected a whole number"),
        ("samples", 10**6, "1000000 sequences do not fit into"),
        ("version", 99, "format is 'mds', expected mds of version 2"),
        ("format", 7, "format is 7, expected mds"),
        ("raw_data", None, r"raw_data is None, expected basename \(a plain path below the folder\)"),
        ("raw_data", {"basename": 5, "bytes": 9, "hashes": {}}, "raw_data is .*5.*, expected basename"),
        ("raw_data", {"basename": "index.json", "bytes": 9, "hashes": {}}, "raw_data is .*index.json"),
        ("zip_data", {"basename": "/etc/passwd", "bytes": 9, "hashes": {}}, "zip_data is .*passwd"),
        ("column_encodings", 3, "column_encodings is 3, expected a list"),
        ("column_encodings", ["str"], "one encoding and one size for each column"),
        ("column_sizes", [None, 9], "size of column 'tokens' is 9, which bytes has not"),
        ("compression", "zap", "compression is 'zap'"),
        ("compression", "zstd", "compression and zip_data do not go together"),
        ("colour", 1, "colour missing or unknown"),
    ],
)
def test_an_entry_of_unknown_form_is_rejected(tmp_path, key, value, reason):
    spoil(tmp_path / "cc", **{key: value})
    with pytest.raises(ValueError, match=rf"cc/index.json: shard 0: .*{reason}.*: {AGAIN}$"):
        SequenceFolder(tmp_path / "cc", SEQ_LEN)


def test_a_column_that_could_run_code_is_rejected(tmp_path):
    columns = {"column_names": ["extra", "tokens"], "column_sizes": [None, None]}
    spoil(tmp_path / "cc", **columns, column_encodings=["pkl", "bytes"])
    with pytest.raises(
        ValueError, match=r"index.json: shard 0: column 'extra' is stored as 'pkl', expected bytes"
    ):
        SequenceFolder(tmp_path / "cc", SEQ_LEN)


def test_shards_that_do_not_belong_together_are_rejected(tmp_path):
    shard = {"basename": "shard.00001.mds", "bytes": 1000, "hashes": {}}
    with pytest.raises(ValueError, match=r"cc/index.json names a file twice"):
        SequenceFolder(spoil(tmp_path / "cc", raw_data=shard), SEQ_LEN)
    columns = {"column_names": ["tokens"], "column_encodings": ["bytes"], "column_sizes": [None]}
    with pytest.raises(ValueError, match=r"wiki/index.json has shards of different columns"):
        SequenceFolder(spoil(tmp_path / "wiki", **columns), SEQ_LEN)


@pytest.mark.parametrize(
    "basename",
    [
        "../../outside",
        "/etc/hostname",
        "..",
        "a/../b",
        "a//b",
        "a/.b",
        "a/",
        "/",
        "a\\b",
        "a\nb",
        "\ud800",
        ".lock",
        "",
    ],
)
def test_a_file_outside_the_folder_is_neither_written_nor_read(tmp_path, basename):
    assert not is_plain_path(basename)
    spoil(tmp_path / "remote" / "cc", raw_data={"basename": basename, "bytes": 1000, "hashes": {}})
    (tmp_path / "outside").write_text("mine")
    remote = Remote(str(tmp_path / "remote"), 0, 10, 1)
    with pytest.raises(ValueError, match=r"remote/cc/index.json: shard 0: raw_data is .*a plain path"):
        SequenceFolder(tmp_path / "local" / "cc", SEQ_LEN, remote=remote, folder="cc")
    assert (tmp_path / "outside").read_text() == "mine"
    assert [file.name for file in (tmp_path / "local" / "cc").iterdir() if file.name != ".lock"] == []


def check_read_or_rejected(path: Path) -> None:
    """Read a folder, which may be refused in a line that names one of its files."""
    refusal = str(path)
    try:
        folder = SequenceFolder(path, SEQ_LEN, vocab_size=100)
        lengths = {len(folder[index].tokens) for index in range(len(folder))}
    except (ValueError, FileNotFoundError) as error:
        refusal, lengths = str(error), {SEQ_LEN}
    assert str(path) in refusal
    assert len(refusal.splitlines()) == 1
    assert lengths <= {SEQ_LEN}


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> tuple[dict, bytes]:
    """Index and shard of a small folder."""
    path = write_folder(tmp_path_factory.mktemp("good") / "cc", 4)
    return json.loads((path / "index.json").read_text()), (path / "shard.00000.mds").read_bytes()


def write(folder: Path, index: object, shard: bytes) -> Path:
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "shard.00000.mds").write_bytes(shard)
    return folder


@given(at=st.integers(0, 10**6), data=st.binary(min_size=1, max_size=40))
@settings(max_examples=150, deadline=None)
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_any_bytes_in_a_shard_are_read_or_rejected(good, at, data):
    index, shard = good
    at %= len(shard)
    with tempfile.TemporaryDirectory() as folder:
        check_read_or_rejected(
            write(Path(folder), index, (shard[:at] + data + shard[at + len(data) :])[: len(shard)])
        )


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@given(at=st.integers(0, 100), value=values)
@settings(max_examples=150, deadline=None)
def test_any_value_in_an_index_is_read_or_rejected(good, at, value):
    index, shard = copy.deepcopy(good[0]), good[1]
    places = [
        (index, "shards"),
        (index["shards"], 0),
        *((index["shards"][0], key) for key in index["shards"][0]),
    ]
    places += [(index["shards"][0]["raw_data"], key) for key in index["shards"][0]["raw_data"]]
    holder, key = places[at % len(places)]
    holder[key] = value
    with tempfile.TemporaryDirectory() as folder:
        check_read_or_rejected(write(Path(folder), index, shard))


def test_offsets_that_do_not_follow_each_other_are_rejected(tmp_path):
    shard = write_folder(tmp_path / "cc", 5) / "shard.00000.mds"
    data = bytearray(shard.read_bytes())
    data[8:12], data[12:16] = data[12:16], data[8:12]
    shard.write_bytes(data)
    with pytest.raises(ValueError, match=rf"shard.00000.mds is damaged \(its sequences .*: {AGAIN}"):
        SequenceFolder(tmp_path / "cc", SEQ_LEN)


def test_a_sequence_of_other_bytes_names_its_file(tmp_path):
    """A tail of zeros has no tokens; a length beyond the entry and a domain that is no text are no entry."""
    shard = write_folder(tmp_path / "cc", 5) / "shard.00000.mds"
    data = shard.read_bytes()
    shard.write_bytes(data[:-26] + bytes(26))  # the last entry: two lengths, cc, 8 tokens
    with pytest.raises(ValueError, match=r"shard.00000.mds: sequence 4 of it takes 0 bytes, the others 16"):
        SequenceFolder(tmp_path / "cc", SEQ_LEN)[4]
    shard.write_bytes(data[:-18] + b"\xff\xff" + data[-16:])
    with pytest.raises(ValueError, match=rf"shard.00000.mds: sequence 4 of it is damaged .*: {AGAIN}"):
        SequenceFolder(tmp_path / "cc", SEQ_LEN).domain(4)


def test_a_negative_token_is_beyond_the_vocabulary(tmp_path):
    shard = write_folder(tmp_path / "cc", 5, dtype="int64") / "shard.00000.mds"
    shard.write_bytes(shard.read_bytes()[:-8] + b"\xff" * 8)
    with pytest.raises(
        ValueError,
        match="sequence 4 holds token 18446744073709551615 \\(-1 as a signed number\\), "
        "the vocabulary has 99",
    ):
        SequenceFolder(tmp_path / "cc", SEQ_LEN, vocab_size=99)[4]
