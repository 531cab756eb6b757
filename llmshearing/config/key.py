"""What is known of a configuration key. It stands in one place, the field of a dataclass:

    lr: float = key(1e-4, "Peak learning rate of the model's parameters.", least=0, resume=SAME)

Strict reading (`strict.py`), the checks, the reference page and what a resume may change all derive from it.
"""

import math
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import cache
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from llmshearing.config import durations

SAME = "same"
"""A resumed run must have the value of the run that wrote the checkpoint."""
FREE = "free"
"""A resumed run may have another value: it says where and how a run runs, not what it computes."""
NOTED = "noted"
"""A resumed run may have another value, which is logged. The rule where a key and its sections have none."""

SUM_TOLERANCE = 1e-3 + 1e-9
"""How far the sum of weights that a user writes may be from 1, and rounding; they are scaled to it."""


@dataclass(frozen=True)
class Key:
    """The metadata of one key.

    Attributes:
        about: its documentation, one line.
        least, most: the numbers it may have, both ends included.
        above, below: the same, the ends excluded.
        also: further values, outside of that range.
        choices: the texts it may be.
        any_case: whether a choice may be written in upper or lower case.
        units: the units of a duration (`durations.UNITS`).
        bare: whether a duration may be written without a unit, in batches.
        length: how many elements a list has.
        distinct: whether the elements of a list must differ, and be there.
        total: what the numbers of a list sum to, within `SUM_TOLERANCE`.
        resume: SAME, FREE or NOTED; of a section, the rule of the keys below it that have none of their own.
        same_below: keys below a section that must be the same, where others of its type need not.
        within: the section that the key stands in, where it is not a field of that section.
    """

    about: str
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    also: tuple[Any, ...] = ()
    choices: tuple[str, ...] = ()
    any_case: bool = False
    units: tuple[str, ...] = ()
    bare: bool = False
    length: int | None = None
    distinct: bool = False
    total: float | None = None
    resume: str | None = None
    same_below: tuple[str, ...] = ()
    within: str | None = None

    @property
    def free_text(self) -> bool:
        """Whether a text here may be anything."""
        return not (self.choices or self.units)

    def expected(self, hint: Any) -> str:
        """What a value, or each element of a list, has to be; empty where the type says all.

        Args:
            hint: the type of the value, or of the elements.
        """
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.units:
            return durations.expected(self.units, self.bare, bool(self.least))
        if self.range:
            kind = "whole number" if int in kinds(hint) else "number"
            also = "".join(f", or {value}" for value in self.also)
            return f"{kind}, {self.range}{also}"
        return ""

    @property
    def range(self) -> str:
        """The numbers a key may have, in words; empty where it may have any."""
        if self.least is not None:
            if self.below is not None:
                return f"from {_number(self.least)} to less than {_number(self.below)}"
            if self.most is not None:
                return f"from {_number(self.least)} to {_number(self.most)}"
            return f"{_number(self.least)} or more"
        if self.above is not None:
            end = f" to {_number(self.most)}" if self.most is not None else ""
            end = f" and less than {_number(self.below)}" if self.below is not None else end
            return f"more than {_number(self.above)}{end}"
        return ""

    def problem(self, name: str, value: Any, hint: Any) -> str | None:
        """What is wrong with a value of the right type; None when nothing is."""
        if value is None or is_dataclass(value):
            return None
        if isinstance(value, list):
            return self._list_problem(name, value, get_args(section_or(hint))[0])
        if not self._fits(value):
            return f"{name} is {value!r}; expected {_with_article(self.expected(hint), value)}."
        return None

    def _list_problem(self, name: str, values: list[Any], hint: Any) -> str | None:
        if self.length is not None and len(values) != self.length:
            return f"{name} has {len(values)} values, {values}; expected {self.length}."
        if self.distinct and not values:
            return f"{name} is empty; give at least one, or leave it out."
        if self.distinct and (twice := sorted({str(v) for v in values if values.count(v) > 1})):
            return f"{name} has {', '.join(twice)} twice; name each once."
        for value in values:
            if not self._fits(value):
                return (
                    f"{name} has {value!r}; expected each to be {_with_article(self.expected(hint), value)}."
                )
        if self.total is not None and values and abs(sum(values) - self.total) > SUM_TOLERANCE:
            return f"{name} sums to {sum(values):.6g}; expected {_number(self.total)}."
        return None

    def _fits(self, value: Any) -> bool:
        if value in self.also:
            return True
        if self.choices:
            choices = [choice.lower() for choice in self.choices] if self.any_case else self.choices
            return (value.lower() if self.any_case else value) in choices
        if self.units:
            return durations.fits(value, self.units, self.bare, bool(self.least))
        if isinstance(value, bool) or not isinstance(value, int | float):
            return not self.range or not isinstance(value, str)  # a text where only numbers and `also` are
        return math.isfinite(value) and self.nearest(value) == value

    def nearest(self, value: Any) -> Any:
        """The value in range nearest to a number; None where there is none, such as above an excluded end."""
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            return None
        if self.least is not None and value < self.least:
            return self.least
        if self.most is not None and value > self.most:
            return self.most
        if self.above is not None and value <= self.above:
            return None
        if self.below is not None and value >= self.below:
            return None
        return value if math.isfinite(value) else None


REQUIRED = MISSING
"""The default of a key that a file must give."""


def key(default: Any, about: str, **known: Any) -> Any:
    """A field of a configuration dataclass; `known` are the attributes of `Key`.

    Args:
        default: the value of a key that is left out, a function that makes it, or `REQUIRED`.
    """
    metadata = {"key": Key(about, **known)}
    if default is REQUIRED:
        return field(metadata=metadata)
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Described:
    """A key with its name, type and default."""

    name: str
    hint: Any
    key: Key
    required: bool
    field: Field

    @property
    def default(self) -> Any:
        """The value when it is left out; None for a required key."""
        if self.required:
            return None
        made = self.field.default_factory
        return self.field.default if made is MISSING else made()

    @property
    def section(self) -> type | None:
        """The dataclass that the key's type is or may be."""
        return next((kind for kind in kinds(self.hint) if is_dataclass(kind)), None)  # type: ignore[return-value]


@cache
def keys_of(schema: type) -> dict[str, Described]:
    """The keys of a configuration dataclass by name, in their order."""
    hints = get_type_hints(schema)
    return {
        each.name: Described(
            each.name,
            hints[each.name],
            each.metadata["key"],
            each.default is MISSING and each.default_factory is MISSING,
            each,
        )
        for each in fields(schema)
    }


def keys_along(schema: type, place: Sequence[str]) -> tuple[list[Described], tuple[str, ...]]:
    """The keys on the way to a place in a file, from the outermost, and what of the place lies below the
    last.

    Below the last lies something when that is a mapping such as `loggers`, or does not have such a key.
    """
    found, inside, rest = [], schema, tuple(place)
    while inside is not None and rest:
        keys = keys_of(inside)
        moved = [each for each in keys.values() if (each.key.within, each.name) == rest[:2]]
        known = moved[0] if moved else keys.get(rest[0])
        if known is None:
            break
        found.append(known)
        inside, rest = known.section, rest[2:] if moved else rest[1:]
    return found, rest


def kinds(hint: Any) -> tuple[Any, ...]:
    """The types that a hint names, with None left out: `list` for `list[str] | None`."""
    union = get_args(hint) if get_origin(hint) not in (list, dict) and get_args(hint) else (hint,)
    return tuple(get_origin(kind) or kind for kind in union if kind is not NoneType)


def section_or(hint: Any) -> Any:
    """The one type of a hint with None left out, with its arguments: `list[str]` for `list[str] | None`."""
    if get_origin(hint) in (list, dict) or not get_args(hint):
        return hint
    return next(kind for kind in get_args(hint) if kind is not NoneType)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _with_article(expected: str, value: Any) -> str:
    if expected.startswith(("one of", "a ")):
        return expected
    finite = isinstance(value, float) and not math.isfinite(value)
    return f"a {'finite ' if finite else ''}{expected or 'number'}"
