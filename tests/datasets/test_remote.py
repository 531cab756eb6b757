"""Data that lies elsewhere: not mistaken for the local copy, kept within its limit, checked as it comes."""

import itertools

import pytest

from llmshearing.config import DatasetConfig, LoaderConfig
from llmshearing.datasets.load_text_dataloader import build_text_dataloader
from llmshearing.datasets.manifest import MANIFEST, Manifest
from llmshearing.datasets.opening import dataset_manifest
from llmshearing.datasets.remote import Remote
from llmshearing.datasets.sequence_folder import SequenceFolder
from tests.datasets.folders import SEQ_LEN, write_folder


def build(local, remote, dynamic=True, vocab_size=None, **settings):
    """A loader of the domain cc, or of cc alone."""
    names = ["cc"] if dynamic else None
    dataset = DatasetConfig(local=str(local), remote=str(remote), max_seq_len=SEQ_LEN, **settings)
    if not dynamic:
        dataset.split = "cc"
    return build_text_dataloader(LoaderConfig(dataset), 2, dynamic, names, vocab_size=vocab_size)


def write_manifest(root, seq_length=SEQ_LEN, dtype="uint16", vocab_size=90):
    tokenizer = {"name": "words", "vocab_size": vocab_size, "vocabulary_sha256": ""}
    Manifest(seq_length, dtype, tokenizer, {}, {}, {"cc": {}}, {}).write(root)


@pytest.mark.parametrize("form", ["{data}", "{data}/", "file://{data}", "data", "{link}", "{data}/../data"])
def test_a_remote_that_is_the_local_folder_is_rejected(tmp_path, monkeypatch, form):
    data = write_folder(tmp_path / "data" / "cc", 50).parent
    (tmp_path / "link").symlink_to(data)
    monkeypatch.chdir(tmp_path)
    remote = form.format(data=data, link=tmp_path / "link")
    for settings in ({}, {"dynamic": False}):
        with pytest.raises(
            ValueError, match=r"remote .* is the local folder .* itself: leave data_remote out"
        ):
            build(data, remote, cache_limit=1, **settings)
    assert sorted(path.name for path in data.iterdir()) == ["cc"]  # nothing was opened


def test_a_local_folder_that_leads_into_the_remote_is_rejected(tmp_path):
    data = write_folder(tmp_path / "data" / "cc", 50).parent
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "cc").symlink_to(data / "cc")
    with pytest.raises(ValueError, match=r"remote .*/data/cc is the local folder .*/local/cc itself"):
        build(tmp_path / "local", data, cache_limit=1)


@pytest.mark.parametrize("limit", ["garbage", -5, 0, "0gb", "nangb", "1e999gb"])
def test_an_invalid_cache_limit_is_rejected(tmp_path, limit):
    for dynamic, section in ((True, "train_loader"), (False, "eval_loader")):
        message = f"{section}.dataset.cache_limit is {limit!r}: expected a size above 0"
        with pytest.raises(ValueError, match=message):
            build(tmp_path / "local", tmp_path / "remote", dynamic, cache_limit=limit)


def test_what_an_earlier_process_left_counts_towards_the_limit(tmp_path):
    """Restarted again and again, each reading other shards, the folder keeps its size."""
    data = write_folder(tmp_path / "remote" / "cc", 50)
    size = max(shard.stat().st_size for shard in data.glob("*.mds"))
    local = tmp_path / "local" / "cc"
    for start in range(0, 50, 5):
        remote = Remote(str(tmp_path / "remote"), 0, 10, 3 * size)
        folder = SequenceFolder(local, SEQ_LEN, remote=remote, folder="cc")
        assert folder[start].tokens[0] == start
        assert sum(shard.stat().st_size for shard in local.glob("*.mds")) <= 3 * size


def test_two_processes_of_a_node_share_what_is_counted(tmp_path):
    data = write_folder(tmp_path / "remote" / "cc", 50)
    size = max(shard.stat().st_size for shard in data.glob("*.mds"))
    local = tmp_path / "local" / "cc"
    remote = Remote(str(tmp_path / "remote"), 0, 10, None)
    for start in (0, 6, 12, 18):  # six sequences a shard
        SequenceFolder(local, SEQ_LEN, remote=remote, folder="cc")[start]
    halves = [Remote(str(tmp_path / "remote"), 0, 10, 8 * size, rank, 2) for rank in (0, 1)]
    for half, start in zip(halves, (24, 30), strict=True):  # room for four each, two of which are here
        SequenceFolder(local, SEQ_LEN, remote=half, folder="cc")[start]
    assert len(list(local.glob("*.mds"))) == 6


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_download_that_is_cut_off_is_fetched_again_once_it_is_mended(tmp_path, compression):
    data = write_folder(tmp_path / "remote" / "cc", 5, compression=compression)
    (shard,) = data.glob("shard*")
    for file in (data / "index.json", shard):
        whole = file.read_bytes()
        file.write_bytes(whole[:-9])
        with pytest.raises(ValueError, match=rf"remote/cc/{file.name} .*: prepare or copy this folder again"):
            build(tmp_path / "local", tmp_path / "remote")
        file.write_bytes(whole)
    assert len(next(iter(build(tmp_path / "local", tmp_path / "remote")))["idx"]) == 2


def test_a_compressed_shard_of_other_bytes_is_named(tmp_path):
    packed = write_folder(tmp_path / "cc", 5, compression="zstd") / "shard.00000.mds.zstd"
    packed.write_bytes(bytes(packed.stat().st_size))
    with pytest.raises(ValueError, match=r"shard.00000.mds.zstd cannot be decompressed"):
        SequenceFolder(tmp_path / "cc", SEQ_LEN)


def test_the_manifest_of_a_remote_is_fetched_and_checked(tmp_path):
    data = write_folder(tmp_path / "remote" / "cc", 5).parent
    local = tmp_path / "local"
    write_manifest(data, seq_length=99)
    with pytest.raises(ValueError, match="prepared with seq_length 99, max_seq_len is 8"):
        build(local, data)
    (local / MANIFEST).unlink()
    write_manifest(data)
    with pytest.raises(ValueError, match="words of 90 tokens, the model's vocab_size is 80"):
        build(local, data, vocab_size=80)
    assert (local / MANIFEST).read_bytes() == (data / MANIFEST).read_bytes()
    (data / MANIFEST).unlink()
    assert dataset_manifest(DatasetConfig(str(local), SEQ_LEN, remote=str(data))).seq_length == SEQ_LEN


def test_a_broken_manifest_of_a_remote_is_not_kept(tmp_path):
    data = write_folder(tmp_path / "remote" / "cc", 5).parent
    (data / MANIFEST).write_text("{}")
    with pytest.raises(ValueError, match=r"manifest.json is not a manifest of prepared data"):
        build(tmp_path / "local", data)
    write_manifest(data)
    build(tmp_path / "local", data)


def test_a_remote_without_a_manifest_is_read_without_a_word(tmp_path, caplog):
    data = write_folder(tmp_path / "remote" / "cc", 5).parent
    assert len(list(itertools.islice(build(tmp_path / "local", data), 2))) == 2
    assert not caplog.records


def test_a_manifest_that_cannot_be_fetched_is_reported(tmp_path, caplog):
    data = write_folder(tmp_path / "remote" / "cc", 5).parent
    (data / MANIFEST).mkdir()
    build(tmp_path / "local", data)
    (warning,) = caplog.messages
    assert "read without its manifest: cannot download" in warning


def test_another_length_is_not_guessed_without_a_manifest(tmp_path):
    """Twice the length of int64 and half that of uint16 would both be read as uint32, all wrong."""
    for name, dtype, seq_len in (("a", "int64", SEQ_LEN // 2), ("b", "uint16", 2 * SEQ_LEN)):
        write_folder(tmp_path / name / "cc", 5, dtype=dtype, seq_len=seq_len)
        with pytest.raises(ValueError, match=r"would be uint32 .*, but look like .*: set max_seq_len to"):
            build(tmp_path / name, "")
    write_folder(tmp_path / "c" / "cc", 5, dtype="uint32")
    write_manifest(tmp_path / "c", dtype="uint32")
    assert next(iter(build(tmp_path / "c", "")))["input_ids"].max() < 5 + SEQ_LEN


def test_ids_beyond_the_vocabulary_may_come_of_a_wrong_length(tmp_path):
    """With a manifest the length is beyond doubt."""
    write_folder(tmp_path / "cc", 5)
    with pytest.raises(
        ValueError, match=r"another tokenizer than the model's, or max_seq_len 8 is not its length"
    ):
        next(iter(build(tmp_path, "", vocab_size=5)))
    write_folder(tmp_path / "known" / "cc", 5)
    write_manifest(tmp_path / "known", vocab_size=5)
    with pytest.raises(ValueError, match=r"made with another tokenizer than the model's$"):
        next(iter(build(tmp_path / "known", "", vocab_size=5)))
