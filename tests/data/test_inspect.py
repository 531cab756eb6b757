"""What the inspect command shows."""

import sys

import pytest

from llmshearing.data import inspect as inspect_command
from tests.data.preparing import read_documents


def test_inspect_shows_counts_and_text(monkeypatch, prepared, capsys):
    _, out = prepared
    monkeypatch.setattr(sys, "argv", ["inspect", str(out), "--samples", "2"])
    inspect_command.main()
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["eval/book", "20", "640", "uint16"] for line in lines)
    first = read_documents(out / "eval" / "book")[0]
    assert any(line.startswith("  [0] book") and " ".join(first.split()[:3]) in line for line in lines)


def test_inspect_wants_the_length_of_data_without_a_manifest(monkeypatch, prepared):
    _, out = prepared
    monkeypatch.setattr(sys, "argv", ["inspect", str(out / "for_ft")])
    monkeypatch.setattr(inspect_command, "manifest_of", lambda root: None)
    with pytest.raises(ValueError, match="has no manifest: give the tokens of a sequence"):
        inspect_command.main()
