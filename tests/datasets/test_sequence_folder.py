"""A folder gives back what was written, in every storage form, and names the file that is broken."""

import json

import numpy as np
import pytest

from llmshearing.datasets.remote import Remote
from llmshearing.datasets.sequence_folder import SequenceFolder
from tests.datasets.folders import SEQ_LEN, write_folder


def contents(folder: SequenceFolder) -> list[list[int]]:
    return [folder[i].tokens.tolist() for i in range(len(folder))]


def expected(samples: int) -> list[list[int]]:
    return [list(range(i, i + SEQ_LEN)) for i in range(samples)]


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "int64"])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_reads_back_every_storage_form(tmp_path, dtype, compression):
    folder = SequenceFolder(write_folder(tmp_path / "cc", 23, dtype=dtype, compression=compression), SEQ_LEN)
    assert contents(folder) == expected(23)
    assert folder.dtype == np.dtype(dtype)
    assert folder[0].tokens.dtype == np.int64
    assert folder[22].domain == folder.domain(22) == "cc"


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_reads_a_remote_folder(tmp_path, compression):
    write_folder(tmp_path / "remote" / "for_ft" / "cc", 23, compression=compression)
    remote = Remote(str(tmp_path / "remote"), 0, 10, None)
    folder = SequenceFolder(tmp_path / "local", SEQ_LEN, remote=remote, folder="for_ft/cc")
    assert contents(folder) == expected(23)


def test_remote_keeps_within_the_cache_limit(tmp_path):
    write_folder(tmp_path / "remote" / "cc", 50)
    local = tmp_path / "local"
    whole = SequenceFolder(tmp_path / "remote" / "cc", SEQ_LEN)
    size = max(shard.stat().st_size for shard in (tmp_path / "remote" / "cc").glob("*.mds"))
    folder = SequenceFolder(
        local, SEQ_LEN, remote=Remote(str(tmp_path / "remote"), 0, 10, 3 * size), folder="cc"
    )
    for i in np.random.default_rng(0).permutation(50).tolist():
        assert np.array_equal(folder[i].tokens, whole[i].tokens)
        assert sum(shard.stat().st_size for shard in local.glob("*.mds")) <= 3 * size
    assert len(list(local.glob("*.mds"))) == 3


def test_a_shard_evicted_by_another_process_is_fetched_again(tmp_path):
    write_folder(tmp_path / "remote" / "cc", 10)
    remote = Remote(str(tmp_path / "remote"), 0, 10, None)
    folder = SequenceFolder(tmp_path / "local", SEQ_LEN, remote=remote, folder="cc")
    assert contents(folder) == expected(10)
    for shard in (tmp_path / "local").glob("*.mds"):
        shard.unlink()
    assert contents(folder) == expected(10)


def test_what_a_killed_download_left_does_not_matter(tmp_path):
    write_folder(tmp_path / "remote" / "cc", 10)
    local = tmp_path / "local"
    local.mkdir()
    (local / "shard.00000.mds.partial").write_bytes(b"half")
    (local / "index.json.partial").write_bytes(b"{")
    remote = Remote(str(tmp_path / "remote"), 0, 10, None)
    assert contents(SequenceFolder(local, SEQ_LEN, remote=remote, folder="cc")) == expected(10)


def test_a_remote_that_lacks_the_folder_is_an_error(tmp_path):
    remote = Remote(str(tmp_path / "remote"), 0, 10, None)
    with pytest.raises(OSError, match=r"cannot download .*/remote/cc/index.json .*check data_remote"):
        SequenceFolder(tmp_path / "local", SEQ_LEN, remote=remote, folder="cc")


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"index.json not found: expected a folder made by"):
        SequenceFolder(tmp_path / "cc", SEQ_LEN)


def test_missing_shard(tmp_path):
    path = write_folder(tmp_path / "cc", 23)
    (path / "shard.00001.mds").unlink()
    with pytest.raises(FileNotFoundError, match=r"shard.00001.mds not found, though index.json names it"):
        SequenceFolder(path, SEQ_LEN)


def test_truncated_shard(tmp_path):
    path = write_folder(tmp_path / "cc", 23)
    shard = path / "shard.00002.mds"
    shard.write_bytes(shard.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"shard.00002.mds has \d+ bytes and .* index.json says"):
        SequenceFolder(path, SEQ_LEN)


@pytest.mark.parametrize(("where", "key"), [("raw_data", "bytes"), (None, "samples")])
def test_index_that_names_a_wrong_size(tmp_path, where, key):
    path = write_folder(tmp_path / "cc", 23)
    index = json.loads((path / "index.json").read_text())
    entry = index["shards"][0]
    (entry[where] if where else entry)[key] += 1
    (path / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"shard.00000.mds has .* index.json says .*prepare or copy"):
        SequenceFolder(path, SEQ_LEN)


def test_a_sequence_of_a_different_length(tmp_path):
    with pytest.raises(ValueError, match=r"takes 12 bytes \(6 of uint16, .* tokens\), expected 8 tokens"):
        SequenceFolder(write_folder(tmp_path / "cc", 3, seq_len=6), SEQ_LEN)


def test_half_the_length_is_not_taken_for_a_wider_type(tmp_path):
    """16 tokens of uint16 read as 8 of uint32 would be nonsense; the config's dtype catches it."""
    path = write_folder(tmp_path / "cc", 3, seq_len=16)
    with pytest.raises(ValueError, match=r"32 bytes for 8 tokens are uint32, expected uint16"):
        SequenceFolder(path, SEQ_LEN, dtypes=["uint16"])
    with pytest.raises(ValueError, match="the vocabulary has 65536"):
        SequenceFolder(path, SEQ_LEN, vocab_size=65536)[0]


def test_token_beyond_the_vocabulary_names_the_file(tmp_path):
    folder = SequenceFolder(write_folder(tmp_path / "cc", 10), SEQ_LEN, vocab_size=12)
    assert folder[4].tokens.max() == 11
    with pytest.raises(
        ValueError, match=r"shard.0000\d.mds: sequence 5 holds token 12, the vocabulary has 12"
    ):
        folder[5]
