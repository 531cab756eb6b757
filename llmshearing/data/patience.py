"""Waits for what may never end: a regular expression of a tokenizer, or the loops of a chat template."""

import threading
from collections.abc import Callable
from typing import TypeVar

PATIENCE_SECONDS = 600.0  # that a tokenizer may take for a batch of text,
SLOWEST_RATE = 10_000  # and a second for each so many bytes

T = TypeVar("T")


class TokenizerPanicError(Exception):
    """The tokenizers library gave up in its native code."""


def within(function: Callable[[], T], seconds: float) -> T:
    """What a function returns; in a thread, so that Ctrl-C and the limit end the wait for native code.

    Time in which this process was suspended does not count.

    Raises:
        TimeoutError: after that many seconds; the thread is left behind.
        TokenizerPanicError: where native code gave up.
    """
    limit = seconds
    done: list[T] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            done.append(function())
        except BaseException as error:  # a panic of native code is no Exception; raised again below
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while thread.is_alive() and seconds > 0:
        waits = min(seconds, 1.0)
        thread.join(waits)
        seconds -= waits
    if failed and type(failed[0]).__name__ == "PanicException":
        raise TokenizerPanicError(str(failed[0])) from None
    if failed:
        raise failed[0]
    if not done:
        raise TimeoutError(f"it did not end in {limit:,.0f} s")
    return done[0]


def patience(text_bytes: int) -> float:
    """The seconds that a tokenizer may take for so much text."""
    return PATIENCE_SECONDS + text_bytes / SLOWEST_RATE


def tokenized(tokenize: Callable[[], T], text_bytes: int, where: str, tokenizer: str) -> T:
    """What a tokenizer makes of a text.

    Args:
        where: the text, and `tokenizer`, for the message.

    Raises:
        ValueError: when it fails in native code or does not end.
    """
    try:
        return within(tokenize, patience(text_bytes))
    except (TimeoutError, TokenizerPanicError) as failure:
        raise ValueError(not_tokenized(where, tokenizer, failure)) from None


def not_tokenized(where: str, tokenizer: str, failure: Exception) -> str:
    """The message for a text that a tokenizer cannot read."""
    return (
        f"{where}: tokenizer {tokenizer} cannot tokenize the text ({failure}): a regular expression in it "
        "may take for ever there; take that text out or use another tokenizer"
    )
