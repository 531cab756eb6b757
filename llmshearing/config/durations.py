"""How long: the one parser of durations, and what they come to in steps.

A duration is a number and a unit: `ba` batches (steps), `tok` tokens, `sp` sequences, `ep` epochs, `dur` a
part of the run. The mixture of domains has no end, so an epoch is as many sequences as the training domains
hold together. Whatever is not a whole number of batches is rounded up: a run of 1ep trains on at least that
many.
"""

import math
import re
from dataclasses import dataclass
from fractions import Fraction

UNITS = {"ba": 10**12, "tok": 10**15, "sp": 10**15, "ep": 10**12, "dur": 1}
"""The most that a duration may be, by its unit."""
_DURATION = re.compile(r"([0-9]{1,16}|[0-9]{1,16}\.[0-9]{0,16}|\.[0-9]{1,16})(ba|tok|sp|ep|dur|)")


@dataclass(frozen=True)
class Duration:
    """A number and its unit; whole but for `dur`, a part of the run from 0 to 1."""

    number: Fraction
    unit: str


def parse(text: str) -> Duration:
    """Read a duration; a number alone counts batches.

    Raises:
        ValueError: when it is not a duration.
    """
    match = _DURATION.fullmatch(text)
    number = Fraction(match[1]) if match else Fraction(-1)
    unit = (match[2] or "ba") if match else ""
    if match is None or number > UNITS[unit] or (unit != "dur" and "." in match[1]):
        raise ValueError(f"{text!r} is not a duration; expected {expected(tuple(UNITS))}.")
    return Duration(number, unit)


def fits(text: str, units: tuple[str, ...], bare: bool = False, positive: bool = False) -> bool:
    """Whether a text is a duration in one of these units, `bare`: or a number of batches without one."""
    try:
        duration = parse(text)
    except ValueError:
        return False
    named = bare or text.endswith(duration.unit)
    return named and duration.unit in units and (duration.number > 0 or not positive)


def expected(units: tuple[str, ...], bare: bool = False, positive: bool = False) -> str:
    """What a duration in these units is, in words."""
    whole = [unit for unit in units if unit != "dur"]
    least = ", more than 0" if positive else ""
    text = f"a whole number{least} and a unit out of {', '.join(whole)}, such as 320ba"
    if bare:
        text += " (the same as 320)"
    return text + (", or a part of the run, such as 0.03dur" if "dur" in units else "")


def batches(text: str | int) -> int:
    """The number in `640ba`, or in `640`.

    Raises:
        ValueError: for another unit, which only a whole run can convert (`steps_in`).
    """
    duration = parse(str(text))
    if duration.unit != "ba":
        raise ValueError(f"{text!r} is not in batches; expected a duration such as 640ba.")
    return int(duration.number)


def steps_in(
    duration: str, batch: int, seq_len: int, epoch_sequences: int | None = None, steps: int | None = None
) -> int:
    """Steps of a duration, rounded up.

    Args:
        duration: such as 3200ba, 50000000tok, 1000sp, 1ep or 0.03dur.
        batch: sequences of a step over all devices.
        seq_len: tokens of a sequence.
        epoch_sequences: sequences that the training domains hold together, for `ep`.
        steps: steps of the whole run, for `dur`.

    Raises:
        ValueError: when the text is not a duration, or what its unit counts in is not given.
    """
    parsed = parse(duration)
    if parsed.unit == "dur":
        if steps is None:
            raise ValueError(f"{duration} is a part of a run whose length is not known.")
        return math.floor(parsed.number * steps)  # as Composer's schedules have it
    if parsed.unit == "ep" and epoch_sequences is None:
        raise ValueError(f"{duration} is in epochs, but how much data there is is not known.")
    sequences = {"ba": batch, "sp": 1, "tok": Fraction(1, seq_len), "ep": epoch_sequences}[parsed.unit]
    return math.ceil(parsed.number * Fraction(sequences) / batch)  # type: ignore[arg-type]
