"""Commands run in this process, as a shell would."""

import sys

from llmshearing import cli


def status_of(monkeypatch, module, *words) -> int:
    """The exit status of a command."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, words)])
    try:
        cli.run(module.main)
    except SystemExit as end:
        return int(end.code or 0)
    return 0
