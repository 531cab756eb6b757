"""What the inspect command shows."""

import shutil
import sys

import pytest

from command_line import error_line, status
from llmshearing.data import inspect as inspect_command
from llmshearing.datasets.manifest import read_manifest
from tests.data.preparing import read_documents


def test_inspect_shows_counts_and_text(monkeypatch, prepared, capsys):
    _, out = prepared
    monkeypatch.setattr(sys, "argv", ["inspect", str(out), "--samples", "2"])
    inspect_command.main()
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["eval/book", "20", "640", "uint16"] for line in lines)
    first = read_documents(out / "eval" / "book")[0]
    assert any(line.startswith("  [0] book") and " ".join(first.split()[:3]) in line for line in lines)


def test_a_part_of_the_data_is_shown_by_its_manifest(monkeypatch, prepared, capsys):
    _, out = prepared
    monkeypatch.setattr(sys, "argv", ["inspect", str(out / "for_ft" / "book"), "--seq_length", "16"])
    inspect_command.main()
    head, folder, sample, around = capsys.readouterr().out.splitlines()
    assert head.split() == ["folder", "sequences", "tokens", "dtype"]
    count, tokens = (int(number.replace(",", "")) for number in folder.split()[1:3])
    assert tokens == 32 * count
    assert sample.startswith("  [0] book")
    assert around.startswith("each document between <s> (0) and </s> (1) of ")


def test_incomplete_work_is_not_shown_and_a_missing_tokenizer_is_reported(
    monkeypatch, prepared, tmp_path, capsys, caplog
):
    shutil.copytree(prepared[1], tmp_path / "out")
    shutil.copytree(
        tmp_path / "out" / "eval" / "book", tmp_path / "out" / ".prepare-1" / "mds" / "eval" / "book"
    )
    manifest = read_manifest(tmp_path / "out")
    manifest.tokenizer["name"] = str(tmp_path / "gone")
    manifest.write(tmp_path / "out")
    monkeypatch.setattr(sys, "argv", ["inspect", str(tmp_path / "out")])
    inspect_command.main()
    shown = capsys.readouterr().out
    assert "eval/book" in shown
    assert ".prepare" not in shown
    assert "  [0] book" not in shown
    assert "no samples are shown: cannot load tokenizer" in caplog.text


def test_inspect_wants_the_length_of_data_without_a_manifest(monkeypatch, prepared):
    _, out = prepared
    monkeypatch.setattr(sys, "argv", ["inspect", str(out / "for_ft")])
    monkeypatch.setattr(inspect_command, "manifest_of", lambda root: None)
    with pytest.raises(ValueError, match="has no manifest: give the tokens of a sequence"):
        inspect_command.main()


def test_an_incomplete_preparation_is_reported(tmp_path):
    (tmp_path / ".prepare-0" / "mds").mkdir(parents=True)
    (tmp_path / ".prepare-0" / "mds" / "index.json").touch()
    with pytest.raises(FileNotFoundError, match=r"no index.json: expected what `.*` has completed"):
        inspect_command.find_folders(tmp_path)


def test_a_manifest_that_is_nested_without_end_is_named(tmp_path, prepared, capsys):
    data = shutil.copytree(prepared[1], tmp_path / "data")
    (data / "manifest.json").write_text("[" * 100_000)
    assert status(["llmshearing", "inspect", str(data)]) == 2
    assert f"error: {data}/manifest.json is not a manifest" in error_line(capsys)
