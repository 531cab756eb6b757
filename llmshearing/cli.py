"""What every command of the package shares: how it ends, what it prints and how `key=value` is read."""

import argparse
import difflib
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import yaml

from llmshearing.files import FULL

_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?e[-+]?\d+", re.I)  # YAML 1.1 reads 5e5 as a text
_UNITS = {"k": 10**3, "m": 10**6, "b": 10**9}
USER_ERRORS = (ValueError, OSError, ImportError, MemoryError)
DEBUG_HELP = "--debug shows the traceback of an error."


def run(main: Callable[[], None]) -> None:
    """Run a command and exit: status 0, or 2 with `error: ...` on stderr where the user can correct it.

    Ctrl-C ends it with status 130 and a line, to which the text of the KeyboardInterrupt is added; SIGTERM
    ends it with status 143. Either way nothing half-written stays behind.

    `--debug` anywhere on the command line shows the traceback instead; `main` never sees it.
    """
    debug = "--debug" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--debug"]
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("llmshearing").setLevel(logging.DEBUG if debug else logging.INFO)
    try:
        with _ending_on_sigterm():
            main()
    except USER_ERRORS as error:
        if debug:
            raise
        sys.stderr.write(f"error: {message(error)}\n")
        sys.exit(2)
    except KeyboardInterrupt as error:
        if debug:
            raise
        sys.stderr.write("; ".join(["interrupted", *map(str, error.args)]) + "\n")
        sys.exit(130)


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that what is half-written is removed."""
    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield
        return
    owner = os.getpid()

    def end(number: int, frame: Any) -> None:
        if os.getpid() != owner:  # a forked worker has nothing to put away
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        sys.stderr.write("terminated\n")
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def message(error: BaseException) -> str:
    """The message of an error for a user; one of the system's own comes with its path and what to check."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        full = error.errno in FULL
        advice = "make room there" if full else "check that it is what you meant and that you may use it"
        return f"{error.filename}: {error.strerror}; {advice}."
    return str(error).strip() or f"{type(error).__name__}, without a word of explanation; --debug shows where"


class _Parser(argparse.ArgumentParser):
    """An argparse parser whose errors read like those of every command, with the nearest known option."""

    def error(self, message: str) -> NoReturn:
        unknown = re.search(r"unrecognized arguments: (--?[\w-]+)", message)
        near = nearest(unknown[1], self._option_string_actions) if unknown else ""
        self.exit(2, f"error: {message}{near}\n{self.format_usage()}")


def parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser for `python -m module`, or for `llmshearing NAME` if that is how the command was called.

    Its `--help` shows the module's documentation as it is.
    """
    return _Parser(
        prog=called_as(f"python -m {module}"),
        description=doc,
        epilog=DEBUG_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def called_as(otherwise: str) -> str:
    """How the command was called: `llmshearing NAME`, which sys.argv[0] then is, or `otherwise`."""
    return sys.argv[0] if sys.argv[0].startswith("llmshearing ") else otherwise


def nearest(word: str, known: Iterable[str], before: str = "") -> str:
    """`; did you mean X?` for the word of `known` most like `word`, after `before`; or nothing."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {before}{match[0]}?" if match else ""


def say(text: str = "") -> None:
    """Write a line of a command's own output."""
    sys.stdout.write(text + "\n")


def quantity(text: str) -> int:
    """A number that may have a unit, for argparse: 419430400, 420M, 0.42B, 1e9.

    Raises:
        argparse.ArgumentTypeError: for anything else.
    """
    number, unit = (text[:-1], _UNITS[text[-1].lower()]) if text[-1:].lower() in _UNITS else (text, 1)
    try:
        value = round(float(number) * unit)
    except (ValueError, OverflowError):
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number such as 2048000, 420M or 0.42B")
    return value


def key_values(words: Sequence[str], example: str = "hidden_size=2048") -> dict[str, Any]:
    """`key=value` words as a dict, values read by `scalar`.

    Args:
        example: one for the message.

    Raises:
        ValueError: for a word without `=`, a value that is not YAML, or a key given twice.
    """
    values: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ValueError(not_a_pair(word, example))
        if key in values:
            raise ValueError(f"Argument {key} is given twice.")
        values[key] = scalar(value)
    return values


def not_a_pair(word: str, example: str = "hidden_size=2048") -> str:
    """The message for a word that is not key=value."""
    return f"Argument {word!r} is not of the form key=value, such as {example}."


def scalar(text: str) -> Any:
    """A value read as a YAML scalar: 16 and 5e5 are numbers, `true` a boolean.

    Raises:
        ValueError: for text that is not YAML.
    """
    try:
        return float(text) if _EXPONENT.fullmatch(text) else yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"The value {text!r} is not plain YAML; quote it if it is a text.") from error
