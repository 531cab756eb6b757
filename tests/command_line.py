"""Commands run in this process, as a shell would."""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

from llmshearing import __main__, cli

ROOT = Path(__file__).parents[1]


def status_of(monkeypatch, module, *words) -> int:
    """The exit status of a module's `main`."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, words)])
    try:
        cli.run(module.main)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def status(words: Sequence[str]) -> int:
    """The exit status of a command: `llmshearing ...`, `python -m MODULE ...` or `composer train.py ...`."""
    program = words[: {"llmshearing": 1, "composer": 2, "python": 3}[words[0]]]
    with mock.patch.object(sys, "argv", [program[-1], *words[len(program) :]]):
        try:
            if words[0] == "llmshearing":
                __main__.main()
            else:
                runpy.run_path(str(_file(program[-1])), run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def error_line(capsys) -> str:
    """The one line in which a command that failed says why."""
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def _file(name: str) -> Path:
    """train.py, or what `python -m name` runs."""
    path = ROOT / name.replace(".", "/")
    return (
        ROOT / name
        if name == "train.py"
        else path / "__main__.py"
        if path.is_dir()
        else path.with_suffix(".py")
    )
