"""A preparation that is ended: by a signal, a lost worker, a disk that is full or cannot be written."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmshearing.data.executors import LocalExecutor
from llmshearing.data.job import remove_partials
from tests.data.preparing import start, tree_hash
from tests.data.texts import documents, write_jsonl


@contextmanager
def small_disk(place: Path, options: str) -> Iterator[Path]:
    """A file system of its own at `place`; where that is not permitted, the test is skipped."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small tmpfs is not permitted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


class Sleeping:
    """A step whose tasks last for ever, and say which process has them."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, data, rank, world_size):
        (self.folder / str(os.getpid())).write_text(str(signal.getsignal(signal.SIGINT)))
        time.sleep(600)


def workers_of(folder, count):
    while len(found := list(folder.glob("[0-9]*"))) < count:
        time.sleep(0.05)
    return {int(path.name): path.read_text() for path in found}


def test_parts_of_processes_that_are_gone_are_removed(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    host = socket.gethostname()
    names = {
        "gone": f"000000.{host}-{gone.pid}.partial",
        "mine": f"000001.{host}-{os.getpid()}.partial",
        "alive": f"000002.{host}-{os.getppid()}.partial",
        "elsewhere": f"000003.other-{gone.pid}.partial",
        "complete": "000004",
    }
    for name in names.values():
        (tmp_path / "tokens" / name).mkdir(parents=True)
    remove_partials(tmp_path)
    left = {path.name for path in (tmp_path / "tokens").iterdir()}
    assert left == {names[key] for key in ("alive", "elsewhere", "complete")}


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "a worker is killed"])
def test_no_worker_outlives_a_run_that_ends_early(tmp_path, end):
    """An interrupt is left to the command; a process that the system ends is noticed."""
    executor = LocalExecutor([Sleeping(tmp_path)], tasks=3, workers=2, logging_dir=str(tmp_path / "logs"))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def strike():
        workers = workers_of(tmp_path, 2)
        os.kill(os.getpid() if end == signal.SIGINT else min(workers), end)

    threading.Thread(target=strike, daemon=True).start()
    expected, message = (
        (KeyboardInterrupt, None) if end == signal.SIGINT else (OSError, "a worker was ended from outside")
    )
    with pytest.raises(expected, match=message):
        executor.run()
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler
    workers = workers_of(tmp_path, 2)
    assert set(workers.values()) == {str(signal.SIG_IGN)}
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]


@pytest.mark.slow
def test_workers_end_with_the_command(tmp_path):
    code = (
        "import sys; from pathlib import Path; from llmshearing.data.executors import LocalExecutor;"
        "from tests.data.test_prepare_ended import Sleeping; folder = Path(sys.argv[1]);"
        "LocalExecutor([Sleeping(folder)], tasks=2, workers=2, logging_dir=str(folder / 'logs')).run()"
    )
    command = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    workers = workers_of(tmp_path, 2)
    command.kill()
    command.wait()
    deadline = time.monotonic() + 20
    while [worker for worker in workers if Path(f"/proc/{worker}").exists()]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def large(tmp_path_factory, tokenizer_folder) -> tuple[Path, dict[str, str]]:
    """Text of many files, and the hashes of what one worker makes of it."""
    folder = tmp_path_factory.mktemp("large")
    for domain in ("book", "wiki"):
        for i in range(6):
            texts = documents(4000, seed=10 * i + len(domain))
            write_jsonl(folder / "text" / domain / f"{i}.jsonl", texts)
    assert start(folder / "text", folder / "out", tokenizer_folder, "--workers", "1").wait() == 0
    return folder / "text", tree_hash(folder / "out")


@pytest.mark.slow
@pytest.mark.reliability
def test_killed_and_started_again_with_any_workers_it_is_the_same(tmp_path, large, tokenizer_folder):
    text, hashes = large
    assert start(text, tmp_path / "two", tokenizer_folder, "--workers", "2").wait() == 0
    assert tree_hash(tmp_path / "two") == hashes
    for delay, kill in ((1, os.killpg), (4, os.kill), (6, os.kill), (7, os.killpg)):
        process = start(text, tmp_path / "killed", tokenizer_folder, "--workers", "2")
        time.sleep(delay)
        kill(process.pid, signal.SIGKILL)  # os.kill leaves its workers behind, at work
        process.wait()
    assert start(text, tmp_path / "killed", tokenizer_folder, "--workers", "2").wait() == 0
    assert tree_hash(tmp_path / "killed") == hashes


@pytest.mark.slow
@pytest.mark.reliability
def test_interrupted_run_says_how_to_resume_in_one_line(tmp_path, large, tokenizer_folder):
    text, hashes = large
    process = start(text, tmp_path / "out", tokenizer_folder, "--workers", "2")
    while not list(tmp_path.glob("out/.prepare-*/tokens/*")):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, error = process.communicate()
    assert error.decode() == "interrupted; start the same command again to resume\n"
    assert process.returncode == 130
    assert start(text, tmp_path / "out", tokenizer_folder, "--workers", "2").wait() == 0
    assert tree_hash(tmp_path / "out") == hashes


@pytest.mark.slow
@pytest.mark.reliability
@pytest.mark.parametrize(
    ("end", "workers"), [(signal.SIGTERM, "2"), (signal.SIGKILL, "2"), (signal.SIGKILL, "1")]
)
def test_nothing_half_written_stays_after_a_run_is_ended(tmp_path, large, tokenizer_folder, end, workers):
    """After SIGTERM nothing is there at once, after SIGKILL once the same command begins again."""
    text, hashes = large
    out = tmp_path / "out"
    process = start(text, out, tokenizer_folder, "--workers", workers)
    while not list(out.rglob("*.partial/tokens.bin")):
        time.sleep(0.01)
    process.send_signal(end)
    _, error = process.communicate()
    if end == signal.SIGTERM:
        assert (process.returncode, b"Traceback" in error) == (143, False)
        assert not list(out.rglob("*.partial"))
    else:
        assert list(out.rglob("*.partial"))
    assert start(text, out, tokenizer_folder, "--workers", workers).wait() == 0
    assert tree_hash(out) == hashes
    assert not list(out.rglob("*.partial")) + list(out.glob(".prepare-*"))


@pytest.mark.slow
@pytest.mark.reliability
def test_a_read_only_output_is_named(tmp_path, text, tokenizer_folder):
    with small_disk(tmp_path / "disk", "ro,size=1m") as disk:
        process = start(text, disk / "out", tokenizer_folder)
        _, error = process.communicate()
    assert process.returncode == 2
    assert error.decode().startswith(f"error: {disk}/out: Read-only file system; ")


@pytest.mark.slow
@pytest.mark.reliability
def test_a_full_disk_is_reported_and_the_next_run_resumes(tmp_path, large, tokenizer_folder):
    text, hashes = large
    with small_disk(tmp_path / "disk", "size=1m") as disk:
        process = start(text, disk / "out", tokenizer_folder)
        _, error = process.communicate()
        assert process.returncode == 2
        assert b"No space left on device for " in error
        assert b"Traceback" not in error
        assert not (disk / "out" / "manifest.json").exists()
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        assert start(text, disk / "out", tokenizer_folder).wait() == 0
        assert tree_hash(disk / "out") == hashes
