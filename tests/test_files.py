"""Files and folders are written whole or not at all."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file

from llmshearing.files import occupied, replacing, replacing_folder, save_tensors


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fail_after_writing(path):
    path.write_text("half")
    raise KeyError


def test_a_file_is_replaced_on_success_alone(tmp_path):
    path = tmp_path / "deep" / "a"
    with replacing(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()
    assert path.read_text() == "one"
    with pytest.raises(KeyError), replacing(path) as temporary:
        fail_after_writing(temporary)
    assert path.read_text() == "one"
    assert names(path.parent) == ["a"]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at inline.cc:659] . unexpected pos 64 vs 0\nand a stack"),  # torch
        SafetensorError("I/O error: No space left on device"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
    ],
)
def test_a_failure_to_write_names_the_file_and_the_room_left(tmp_path, monkeypatch, error):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(total=2**41, free=1234))
    room = rf"\({tmp_path} has 1,234 bytes left: make room, or write elsewhere\)"
    said = rf"^Writing .*a failed: [\w: /]+ {room}\.$"
    with pytest.raises(OSError, match=said), replacing(tmp_path / "a"):
        raise error
    with pytest.raises(OSError, match=said), replacing_folder(tmp_path / "a", marker="m"):
        raise error
    assert not names(tmp_path)


def test_what_is_not_allowed_names_the_file_and_not_its_draft(tmp_path):
    for place in (replacing(tmp_path / "a"), replacing_folder(tmp_path / "a", marker="m")):
        with pytest.raises(PermissionError) as found, place as temporary:
            raise PermissionError(errno.EACCES, "Permission denied", str(temporary / "weights"))
        assert found.value.filename == str(tmp_path / "a")


def test_a_child_that_outlives_its_parent_does_not_hold_the_folder(tmp_path):
    code = (
        "import os, sys, time; from pathlib import Path; from llmshearing.files import occupied\n"
        "with occupied(Path(sys.argv[1]), 'run', 'save_folder'):\n"
        "    if not os.fork(): print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as parent:
        try:
            assert parent.stdout.readline() == b"held\n"
            with pytest.raises(FileExistsError), occupied(tmp_path, "run", "save_folder"):
                pass
            parent.kill()
            parent.wait()
            with occupied(tmp_path, "run", "save_folder"):
                pass
        finally:
            os.killpg(parent.pid, signal.SIGKILL)


def test_a_folder_that_is_held_in_vain_is_removed(tmp_path):
    for made in ([], ["a"]):
        with occupied(tmp_path / "new", "run", "save_folder"):
            for name in made:
                (tmp_path / "new" / name).touch()
        assert names(tmp_path) == (["new"] if made else [])
    assert names(tmp_path / "new") == ["a"]


def test_a_folder_that_cannot_be_locked_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    def refused(self):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", refused)
    with occupied(tmp_path, "run", "save_folder"):
        (tmp_path / "a").touch()
    assert "cannot be locked" in caplog.text
    assert "start no second run there" in caplog.text


def test_other_failures_are_not_blamed_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(total=2**41, free=2**40))
    with pytest.raises(OSError, match=r"Writing .*a failed: no storage\.$"), replacing(tmp_path / "a"):
        raise RuntimeError("no storage")
    said = r"^Writing (.*/a) failed: \1 cannot be opened\.$"
    with pytest.raises(OSError, match=said), replacing(tmp_path / "a") as temporary:
        raise RuntimeError(f"{temporary} cannot be opened.")
    with pytest.raises(PermissionError, match=r"^not yours$"), replacing(tmp_path / "a"):
        raise PermissionError("not yours")


def test_a_folder_is_replaced_on_success_alone(tmp_path):
    for text in ("one", "two"):
        with replacing_folder(tmp_path / "f", marker="m") as temporary:
            (temporary / "m").write_text(text)
        assert (tmp_path / "f" / "m").read_text() == text
    with pytest.raises(KeyError), replacing_folder(tmp_path / "f", marker="m") as temporary:
        fail_after_writing(temporary / "m")
    assert (tmp_path / "f" / "m").read_text() == "two"
    assert names(tmp_path) == ["f"]


def test_a_folder_whose_replacement_cannot_be_named_stays(tmp_path, monkeypatch):
    rename = Path.rename

    def refuse_the_new(path, target):
        if path.suffix == ".tmp":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return rename(path, target)

    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "m").write_text("one")
    monkeypatch.setattr(Path, "rename", refuse_the_new)
    with (
        pytest.raises(OSError, match="Input/output"),
        replacing_folder(tmp_path / "f", marker="m") as temporary,
    ):
        (temporary / "m").write_text("two")
    assert (tmp_path / "f" / "m").read_text() == "one"
    assert names(tmp_path) == ["f"]


def test_what_is_no_such_folder_is_left_alone(tmp_path):
    (tmp_path / "f").mkdir()
    with replacing_folder(tmp_path / "f", marker="m") as temporary:  # empty: taken
        (temporary / "n").write_text("mine")
    with pytest.raises(FileExistsError, match="holds no m"), replacing_folder(tmp_path / "f", marker="m"):
        pass
    assert (tmp_path / "f" / "n").read_text() == "mine"


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_tensors_are_as_readable_as_other_files(tmp_path, mask):
    before = os.umask(mask)
    try:
        save_tensors({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask
    assert load_file(tmp_path / "a.safetensors")["a"].tolist() == [1, 1]
