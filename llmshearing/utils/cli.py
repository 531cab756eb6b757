"""What every command of the package shares: how it ends, what it prints and how `key=value` is read."""

import argparse
import logging
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from llmshearing.utils.files import FULL

_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?e[-+]?\d+", re.I)  # YAML 1.1 reads 5e5 as a text
USER_ERRORS = (ValueError, OSError, ImportError)


def run(main: Callable[[], None]) -> None:
    """Run a command and exit: status 0, or 2 with `error: ...` on stderr when the user can put it right.

    `--debug` anywhere on the command line shows the traceback instead; `main` never sees it.
    """
    debug = "--debug" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--debug"]
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("llmshearing").setLevel(logging.DEBUG if debug else logging.INFO)
    try:
        main()
    except USER_ERRORS as error:
        if debug:
            raise
        sys.stderr.write(f"error: {message(error)}\n")
        sys.exit(2)


def message(error: BaseException) -> str:
    """What to tell a user; what the system itself refused is said in words, with what to look at."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        full = error.errno in FULL
        advice = "make room there" if full else "check that it is what you meant and that you may use it"
        return f"{error.filename}: {error.strerror}; {advice}."
    return str(error)


def parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser for `python -m module`, whose `--help` shows the module's documentation as it stands."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def say(text: str = "") -> None:
    """Write a line of a command's own output."""
    sys.stdout.write(text + "\n")


def key_values(words: Sequence[str]) -> dict[str, Any]:
    """`key=value` words as a dict, values read as YAML scalars: 16 and 5e5 are numbers, `true` a boolean.

    Raises:
        ValueError: for a word without `=`, a value that is no YAML, or a key given twice.
    """
    values: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ValueError(f"Argument {word!r} is not of the form key=value, such as hidden_size=2048.")
        if key in values:
            raise ValueError(f"Argument {key} is given twice.")
        try:
            values[key] = float(value) if _EXPONENT.fullmatch(value) else yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"The value of {word!r} is not plain YAML; quote it if it is a text.") from error
    return values
