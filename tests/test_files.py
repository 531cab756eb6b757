"""Files and folders are written whole or not at all."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from llmshearing.checkpoints.writing import check_output
from llmshearing.files import (
    LOCK,
    Held,
    check_new_folder,
    lock,
    occupied,
    replacing,
    replacing_folder,
    save_tensors,
    scratch,
)


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


def test_a_link_is_followed(tmp_path):
    """As the shell does: what it leads to is written, on the disk where that lies."""
    for name in ("file", "folder"):
        (tmp_path / "disk" / name).mkdir(parents=True)
        (tmp_path / f"to-{name}").symlink_to(tmp_path / "disk" / name)
    (tmp_path / "disk" / "file").rmdir()
    (tmp_path / "disk" / "file").touch()
    with replacing(tmp_path / "to-file") as temporary:
        temporary.write_text("new")
    with replacing_folder(tmp_path / "to-folder") as temporary:
        (temporary / "a").touch()
    assert all((tmp_path / f"to-{name}").is_symlink() for name in ("file", "folder"))
    assert (tmp_path / "disk" / "file").read_text() == "new"
    assert names(tmp_path / "disk" / "folder") == ["a"]
    (tmp_path / "to-nothing").symlink_to("nowhere")
    with (
        pytest.raises(FileExistsError, match="to-nothing is a link to nothing"),
        replacing_folder(tmp_path / "to-nothing"),
    ):
        pass


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


def test_occupied_removes_its_lock_and_an_empty_folder(tmp_path):
    for made in ([], ["a"]):
        with occupied(tmp_path / "new", "run", "save_folder"):
            for name in made:
                (tmp_path / "new" / name).touch()
        assert names(tmp_path) == (["new"] if made else [])
    assert names(tmp_path / "new") == ["a"]


@pytest.fixture
def no_locks(monkeypatch):
    """A file system without flock(2), as Lustre may be."""

    def refused(descriptor, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refused)


def test_a_folder_that_cannot_be_locked_is_used_with_a_warning(tmp_path, no_locks, caplog):
    """Neither the folder nor a lock file that somebody left there stops the next process."""
    for _ in range(2):
        with occupied(tmp_path, "run", "save_folder"):
            (tmp_path / "a").touch()
        assert f"{tmp_path / LOCK} cannot be locked" in caplog.text
        assert "start no second run there" in caplog.text
        (tmp_path / LOCK).write_text("1234\nanother-host\n")


def test_rejected_process_names_the_lock_and_leaves_it(tmp_path):
    with occupied(tmp_path, "run", "save_folder"):
        before = (tmp_path / LOCK).stat().st_ino
        with (
            pytest.raises(FileExistsError, match=rf"it holds {tmp_path / LOCK}"),
            occupied(tmp_path, "run", "save_folder"),
        ):
            pass
        assert (tmp_path / LOCK).stat().st_ino == before


def test_lock_on_a_removed_file_is_not_held(tmp_path, monkeypatch):
    """Between opening and locking, another process may put a new lock file in the place of the first."""
    flock, path = fcntl.flock, tmp_path / LOCK
    replaced = []

    def flock_late(descriptor, operation):
        if not replaced:
            path.unlink()
            replaced.append(path.touch())
        return flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock_late)
    with lock(path), pytest.raises(Held), lock(path):
        pass


def test_folder_that_cannot_be_written_to_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with (
        pytest.raises(PermissionError, match=f"save_folder is {tmp_path}, where this process may not write"),
        occupied(tmp_path, "run", "save_folder"),
    ):
        pass


WRITER = """
import sys, time
from pathlib import Path
from llmshearing.files import replacing, replacing_folder

path = Path(sys.argv[1])
with (replacing(path) if sys.argv[2] == "file" else replacing_folder(path, marker="m")) as draft:
    (draft if sys.argv[2] == "file" else draft / "m").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def writer():
    """Starts a process that is in the middle of writing a path."""
    started = []

    def start(path, kind):
        command = [sys.executable, "-c", WRITER, str(path), kind]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        assert started[-1].stdout.readline() == b"writing\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def write(path, kind):
    with replacing(path) if kind == "file" else replacing_folder(path, marker="m") as draft:
        (draft if kind == "file" else draft / "m").write_text("whole")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_next_writer_removes_what_a_killed_one_left_and_no_other(tmp_path, writer, kind):
    path, other = tmp_path / "model[1].pt", tmp_path / "model[1].pt.a"
    killed = writer(path, kind)
    killed.kill()
    killed.wait()
    assert len(names(tmp_path)) == 1
    writer(other, kind)
    writer(path, kind)  # which removes the first one's draft
    assert len(names(tmp_path)) == 2
    write(path, kind)
    assert len(names(tmp_path)) == 3
    assert path.exists()


SCRATCH = """
import time
from llmshearing.files import scratch

with scratch() as folder:
    (folder / "model").write_text("large")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_temporary_folders_of_killed_processes_are_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    started = [
        subprocess.Popen([sys.executable, "-c", SCRATCH], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [process.stdout.readline() for process in started if process.stdout] == ["writing\n"] * 2
    started[0].kill()
    started[0].communicate()
    assert len(names(tmp_path)) == 2
    with scratch() as folder:
        assert len(names(tmp_path)) == 2  # the living process's and this one
        assert folder.name in names(tmp_path)
    started[1].kill()
    started[1].communicate()


def test_a_draft_of_another_user_stops_nobody(tmp_path, writer, monkeypatch):
    writer(tmp_path / "a", "file").kill()
    (draft,) = names(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != draft)
    is_file = Path.is_file

    def denied(self):
        if self.parent.name == draft:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return is_file(self)

    monkeypatch.setattr(Path, "is_file", denied)
    write(tmp_path / "a", "file")
    assert names(tmp_path) == [draft, "a"]


@pytest.mark.parametrize(
    "output", [lambda path: check_new_folder(path), lambda path: check_output(path, "source")]
)
def test_outputs_that_cannot_be_written_are_found_before_the_work(tmp_path, monkeypatch, output):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file is a file; expected a folder to write to"):
        output(tmp_path / "file" / "out")
    with pytest.raises(OSError, match="/proc is a folder where this process"):
        output(Path("/proc/new/out"))
    output(tmp_path / "new" / "out")
    assert names(tmp_path) == ["file"]

    def denied(dir):
        raise PermissionError(errno.EACCES, "Permission denied", str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", denied)
    with pytest.raises(PermissionError, match=f"{tmp_path} is a folder where this process may not write"):
        output(tmp_path / "new" / "out")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_drafts_stay_where_their_owner_cannot_be_checked(tmp_path, writer, no_locks, caplog, kind):
    writer(tmp_path / "a", kind)
    draft = names(tmp_path)
    write(tmp_path / "a", kind)
    assert names(tmp_path) == [*draft, "a"]
    assert "may be left from an interrupted write" in caplog.text


def test_folder_whose_replacement_was_killed_half_way_comes_back(tmp_path, monkeypatch):
    write(tmp_path / "f", "folder")
    rename = Path.rename

    def killed_before_the_second(path, target):
        if path.name == "f" and path.parent != tmp_path:
            os._exit(9)
        return rename(path, target)

    if not (child := os.fork()):
        monkeypatch.setattr(Path, "rename", killed_before_the_second)
        write(tmp_path / "f", "folder")
    os.waitpid(child, 0)
    assert not (tmp_path / "f").exists()
    with pytest.raises(KeyError), replacing_folder(tmp_path / "f", marker="m"):
        raise KeyError
    assert names(tmp_path) == ["f"]
    assert (tmp_path / "f" / "m").read_text() == "whole"


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
        if path.name == "f" and path.parent.suffix == ".tmp":
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


def test_other_folders_are_not_touched(tmp_path):
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
