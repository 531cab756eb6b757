"""Progress follows what is written, and is silent where that takes no time."""

import time

from llmshearing import progress
from llmshearing.progress import writing, written


def test_bytes_of_files_and_folders_are_counted(tmp_path):
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "b").write_bytes(b"45")
    assert written(tmp_path / "a") == 3
    assert written(tmp_path) == 5
    assert written(tmp_path / "absent") == 0


def test_a_long_write_is_shown_with_how_far_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "_SHORT_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.01)
    with writing(tmp_path / "a", 400_000, "a"):
        (tmp_path / "a").write_bytes(bytes(100_000))
        time.sleep(0.3)
    first, *lines, last = capsys.readouterr().err.split("\n")
    assert first.startswith("writing a:   0%")
    assert len(lines) == 1
    assert lines[0].startswith("writing a:  25%")
    assert not last.strip()


def test_a_short_write_is_not_shown(tmp_path, capsys):
    with writing(tmp_path / "a", 10, "a"):
        (tmp_path / "a").write_bytes(bytes(10))
    assert capsys.readouterr().err == ""
