"""Merging keeps every sequence and spreads the folders evenly."""

import pytest

from llmshearing import fired
from llmshearing.data import merge_data
from llmshearing.datasets.sequence_folder import SequenceFolder
from tests.datasets.folders import SEQ_LEN, write_folder


def test_the_command_spreads_folders_evenly(tmp_path, capsys):
    for name, count in (("cc", 6), ("book", 3), ("wiki", 1)):
        write_folder(tmp_path / "eval" / name, count, name)
    words = ["--input_dir", f"{tmp_path}/eval", "--output_dir", str(tmp_path), "--output_split", "eval_merge"]
    fired.call(merge_data.merge_data, "merge", [*words, "--split_names", "cc", "book", "wiki"])
    assert "10 sequences of 3 folders" in capsys.readouterr().out
    merged = SequenceFolder(tmp_path / "eval_merge", SEQ_LEN)
    order = [merged.domain(i) for i in range(10)]
    assert order == ["cc", "book", "cc", "cc", "book", "wiki", "cc", "cc", "book", "cc"]
    assert [int(merged[i].tokens[0]) for i in range(10) if order[i] == "cc"] == list(range(6))
    fired.call(merge_data.merge_data, "merge", [*words, "--split_names", "cc,", "book,wiki"])
    assert [SequenceFolder(tmp_path / "eval_merge", SEQ_LEN).domain(i) for i in range(10)] == order


def test_folders_of_other_tokens_are_rejected_and_nothing_is_left(tmp_path):
    write_folder(tmp_path / "cc", 3)
    write_folder(tmp_path / "book", 3, dtype="int64")
    with pytest.raises(ValueError, match=r"/book holds .* 64\), .*/cc holds .* 16\)"):
        merge_data.merge([tmp_path / "cc", tmp_path / "book"], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_folder_without_sequences_is_named(tmp_path):
    write_folder(tmp_path / "cc", 3)
    write_folder(tmp_path / "book", 0)
    with pytest.raises(ValueError, match="book holds no sequences: omit it"):
        merge_data.merge([tmp_path / "cc", tmp_path / "book"], tmp_path / "merged")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere/index.json not found"):
        merge_data.merge([tmp_path / "nowhere"], tmp_path / "merged")


def test_folders_named_twice_are_rejected(tmp_path):
    write_folder(tmp_path / "cc", 3)
    (tmp_path / "link").symlink_to(tmp_path / "cc")
    for name in ("cc", "link"):
        with pytest.raises(ValueError, match=f"{name} is to be merged twice: name each folder once"):
            merge_data.merge([tmp_path / "cc", tmp_path / name], tmp_path / "merged")


def test_an_output_that_would_replace_an_input_is_rejected(tmp_path):
    for name in ("cc", "book", "cc/part"):
        write_folder(tmp_path / name, 3)
    (tmp_path / "link").symlink_to(tmp_path / "cc")
    for name in ("cc", "link"):
        for source in ("cc", "cc/part"):
            with pytest.raises(ValueError, match=f"would replace .*/{source}, which it reads"):
                merge_data.merge([tmp_path / "book", tmp_path / source], tmp_path / name)
    assert len(SequenceFolder(tmp_path / "cc", SEQ_LEN)) == 3


def test_only_a_result_of_the_same_size_is_replaced_and_that_is_said(tmp_path, caplog):
    for name in ("cc", "book", "other"):
        write_folder(tmp_path / name, 3)
    with pytest.raises(FileExistsError, match=r"/other holds 3 sequences, not the 6 of this merge: choose"):
        merge_data.merge([tmp_path / "cc", tmp_path / "book"], tmp_path / "other")
    merge_data.merge([tmp_path / "cc", tmp_path / "book"], tmp_path / "merged")
    assert not caplog.text
    merge_data.merge([tmp_path / "cc", tmp_path / "book"], tmp_path / "merged")
    assert "/merged, which held as many sequences, is replaced" in caplog.text


def test_a_result_that_cannot_be_read_is_left_alone(tmp_path):
    for name in ("cc", "book", "merged"):
        write_folder(tmp_path / name, 3)
    (tmp_path / "merged" / "index.json").write_text("[]")
    with pytest.raises(FileExistsError, match=r"/merged was not written by a merge .*: choose another"):
        merge_data.merge([tmp_path / "cc", tmp_path / "book"], tmp_path / "merged")


@pytest.mark.parametrize("samples", [0, 2])
def test_a_folder_with_a_wrong_index_is_rejected(tmp_path, samples):
    write_folder(tmp_path / "cc", 3)
    index = write_folder(tmp_path / "book", 3) / "index.json"
    index.write_text(index.read_text().replace('"samples": 3', f'"samples": {samples}'))
    with pytest.raises(ValueError, match=r"/book/.*: prepare or copy this folder again"):
        merge_data.merge([tmp_path / "cc", tmp_path / "book"], tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["book", "cc"]


def test_a_damaged_shard_is_rejected_and_nothing_is_left(tmp_path):
    write_folder(tmp_path / "cc", 3)
    shard = write_folder(tmp_path / "book", 3) / "shard.00000.mds"
    data = shard.read_bytes()
    for damaged in (data[:-7], data[:-60] + bytes(60), data[:4] + bytes(16) + data[20:]):
        shard.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"/book/shard.00000.mds.*: .*prepare or copy this folder again"):
            merge_data.merge([tmp_path / "cc", tmp_path / "book"], tmp_path / "merged")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["book", "cc"]


@pytest.mark.parametrize("name", ["../escape", "a/b", "/tmp/x", "..", ".", ""])
def test_a_name_that_leads_out_of_the_output_folder_is_rejected(tmp_path, name):
    write_folder(tmp_path / "cc", 3)
    with pytest.raises(
        ValueError, match=r"--output_split is .*: expected the name of a folder in --output_dir"
    ):
        merge_data.merge_data(tmp_path, tmp_path / "out", name, ["cc"])
    assert [path.name for path in tmp_path.iterdir()] == ["cc"]
