"""How commands read their arguments and end."""

import errno
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llmshearing import cli


def test_values_are_read_as_yaml_scalars():
    found = cli.key_values(["hidden_size=16", "tie=true", "rope_theta=5e5", "_name_or_path=a/b=c", "x=null"])
    assert found == {"hidden_size": 16, "tie": True, "rope_theta": 5e5, "_name_or_path": "a/b=c", "x": None}
    assert cli.key_values(["rms_norm_eps=1e-5", "least=-2E+3"]) == {"rms_norm_eps": 1e-5, "least": -2e3}


@pytest.mark.parametrize(
    ("words", "message"),
    [(["a"], "'a' is not of the form"), (["=1"], "'=1' is not of the form"), (["a=1", "a=2"], "given twice")],
)
def test_malformed_arguments_are_rejected(words, message):
    with pytest.raises(ValueError, match=message):
        cli.key_values(words)


def test_the_example_of_an_argument_is_the_commands():
    with pytest.raises(ValueError, match=r"'a' is not of the form key=value, such as cc=0\.5\."):
        cli.key_values(["a"], "cc=0.5")


def fail():
    raise ValueError("d_model is 3; expected 4.")


def test_a_users_mistake_ends_with_its_message_and_status_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit) as end:
        cli.run(fail)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: d_model is 3; expected 4.\n"


@pytest.mark.parametrize("error", [OSError("the disk is gone"), ImportError("install flash-attn")])
def test_what_a_machine_lacks_ends_with_its_message_too(monkeypatch, capsys, error):
    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit):
        cli.run(lambda: (_ for _ in ()).throw(error).__next__())
    assert capsys.readouterr().err == f"error: {error}\n"


@pytest.mark.parametrize(("words", "level"), [([], logging.INFO), (["--debug"], logging.DEBUG)])
def test_commands_say_what_they_do_and_with_debug_more(monkeypatch, words, level):
    monkeypatch.setattr(sys, "argv", ["command", *words])
    monkeypatch.setattr(logging.getLogger("llmshearing"), "level", logging.WARNING)
    cli.run(lambda: None)
    assert logging.getLogger("llmshearing").level == level


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "No space left on device; make room there."),
        (errno.EDQUOT, "Disk quota exceeded; make room there."),
        (errno.EACCES, "you may use it."),
        (errno.EROFS, "you may use it."),
    ],
)
def test_errors_of_the_system_say_what_to_do(number, advice):
    told = cli.message(OSError(number, os.strerror(number), "out"))
    assert told.startswith("out: ")
    assert told.endswith(advice)
    assert "None" not in cli.message(OSError(number, os.strerror(number)))


def test_debug_shows_the_traceback_and_is_not_seen_by_the_command(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command", "--debug", "x"])
    with pytest.raises(ValueError, match="d_model is 3"):
        cli.run(fail)
    assert sys.argv == ["command", "x"]


def test_our_own_mistakes_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(AssertionError):
        cli.run(lambda: (_ for _ in ()).throw(AssertionError()).__next__())


@pytest.mark.parametrize(
    ("text", "line"), [((), "interrupted"), (("run it again",), "interrupted; run it again")]
)
def test_an_interrupt_ends_with_a_line_and_status_130(monkeypatch, capsys, text, line):
    def stop():
        raise KeyboardInterrupt(*text)

    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit) as end:
        cli.run(stop)
    assert end.value.code == 130
    assert capsys.readouterr().err == f"{line}\n"
    monkeypatch.setattr(sys, "argv", ["command", "--debug"])
    with pytest.raises(KeyboardInterrupt):
        cli.run(stop)


WRITER = """
import os, sys, time
from pathlib import Path
from llmshearing import cli
from llmshearing.files import replacing

def main():
    with replacing(Path(sys.argv[1])) as draft:
        draft.write_text("half")
        if not os.fork():
            print("writing", flush=True)  # by the child: CPython drops signals that arrive during its fork
        time.sleep(60)

cli.run(main)
"""


@pytest.mark.parametrize(
    ("number", "status", "said"),
    [(signal.SIGTERM, 143, "terminated\n"), (signal.SIGINT, 130, "interrupted\n")],
)
def test_nothing_half_written_stays_after_a_signal(tmp_path, number, status, said):
    """A forked worker dies of the signal as it does without us, and says nothing."""
    command = [sys.executable, "-c", WRITER, str(tmp_path / "model.pt")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    assert len(list(tmp_path.iterdir())) == 1
    if number == signal.SIGTERM:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
        process.wait(30)
        os.killpg(process.pid, signal.SIGKILL)
    assert process.communicate(timeout=30)[1] == said
    assert process.returncode == status
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["train.py", "run.yaml"], ["-m", "llmshearing.utils.plan", "run.yaml"]])
def test_ctrl_c_while_a_command_is_imported(tmp_path, command):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{root}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr, done.stdout) == (130, "interrupted\n", "")
