"""References in a configuration: `${key}` stands for another key's value.

They are resolved here and not by OmegaConf, whose resolvers read the environment: what is read as data, such
as the record in a stranger's checkpoint, must reveal nothing of whoever reads it. `${resolver:...}` stays a
text; only a configuration that a user runs is resolved further (`reading.py`).
"""

import re
from typing import Any

from llmshearing.config.plain import copied

_REFERENCE = re.compile(r"(?<!\\)\$\{\s*(\.*)([\w-]+(?:\.[\w-]+|\[[\w-]+\])*)\s*\}")
_LONGEST = 100_000  # characters of a text, which references can multiply
_NOTHING = object()


def resolve_references(values: dict[str, Any]) -> dict[str, Any]:
    """`values` with every `${key}`, `${a.b}` and `${.sibling}` replaced by what stands there.

    A text that is nothing but a reference becomes a copy of what it refers to, of any type.

    Raises:
        ValueError: for a reference to nothing, in a circle, or that makes the values grow beyond all bounds.
    """
    resolver = _References(values)
    return copied({key: resolver.resolved((key,)) for key in values})


class _References:
    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values
        self._done: dict[tuple[str, ...], Any] = {}
        self._busy: set[tuple[str, ...]] = set()

    def resolved(self, place: tuple[str, ...]) -> Any:
        """What stands at a place, references resolved."""
        if place in self._done:
            return self._done[place]
        if place in self._busy:
            raise ValueError(f"{'.'.join(place)} refers to itself; remove the circle.")
        self._busy.add(place)
        value = self._at(place)
        if isinstance(value, dict):
            value = {key: self.resolved((*place, key)) for key in value}
        elif isinstance(value, list):
            value = [self.resolved((*place, str(index))) for index in range(len(value))]
        elif isinstance(value, str) and "${" in value:
            value = self._text(value, place)
        self._busy.discard(place)
        self._done[place] = value
        return value

    def _text(self, text: str, place: tuple[str, ...]) -> Any:
        while match := _REFERENCE.search(text):
            value = self._referred(match, place)
            if match[0] == text:
                return value
            if value is None or isinstance(value, dict | list):
                what = "is empty" if value is None else "is not a text"
                raise ValueError(f"{'.'.join(place)} is made of {match[0]}, which {what}.")
            text = f"{text[: match.start()]}{value}{text[match.end() :]}"
            if len(text) > _LONGEST:
                raise ValueError(f"{'.'.join(place)} is longer than {_LONGEST:,} characters.")
        return text

    def _referred(self, match: re.Match[str], place: tuple[str, ...]) -> Any:
        """What a reference stands for; leading dots count from the section that it is in."""
        section = place[: -len(match[1])] if match[1] else ()
        target = (*section, *re.findall(r"[\w-]+", match[2]))
        if self._at(target) is _NOTHING:
            raise ValueError(f"{'.'.join(place)} refers to {match[0]}, but there is no {'.'.join(target)}.")
        return self.resolved(target)

    def _at(self, place: tuple[str, ...]) -> Any:
        value: Any = self._values
        for depth, part in enumerate(place):
            if isinstance(value, str) and _REFERENCE.fullmatch(value):  # a reference on the way to the place
                value = self.resolved(place[:depth])
            if isinstance(value, dict) and part in value:
                value = value[part]
            elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
                value = value[int(part)]
            else:
                return _NOTHING
        return value
