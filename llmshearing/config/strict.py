"""From a mapping to dataclasses, strictly: the one way in which YAML becomes typed."""

import re
from collections.abc import Iterator
from typing import Any, get_args

from omegaconf import OmegaConf

from llmshearing import cli
from llmshearing.config.key import Described, Key, keys_of, kinds, section_or
from llmshearing.config.original import ADVICE, CALLED_HERE, IDLE
from llmshearing.config.plain import Plain, copied, typed

_LISTED = 12  # known keys that a message names
_SHOWN = 40  # characters of a value that a message shows
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_MISFIT = object()


def build(schema: type, values: Any, source: str = "configuration") -> Any:
    """Fill dataclass `schema` from a mapping, strictly.

    Raises:
        ValueError: for unknown keys, wrong types, values out of range and missing ones, naming each key.
    """
    filled, problems = build_what_fits(schema, values, source)
    if problems:
        raise ValueError("\n".join(problems))
    return filled


def build_what_fits(schema: type, values: Any, source: str = "configuration") -> tuple[Any, list[str]]:
    """Fill dataclass `schema` with the values that fit, the others left at their defaults; and the problems.

    A section with nothing below it counts as left out. A number out of its range becomes the nearest in it,
    so that a plan can show the rest. What is filled is None where a value is missing that has no default.
    """
    plain = OmegaConf.to_container(values, resolve=True) if OmegaConf.is_config(values) else values
    if not isinstance(plain, dict):
        return None, [f"{source} is {_shown(plain)}; expected keys and values."]
    reader = _Reader()
    filled = reader.section(schema, copied(plain), "")
    return filled, [f"{source}: {problem}" for problem in reader.problems]


def convert(known: Described, value: Any, name: str = "") -> Any:
    """A value of a key, other than a section, in the key's type.

    Raises:
        ValueError: when it is of another type, naming the key.
    """
    hint = section_or(known.hint)
    if value is None:
        return None
    if dict in kinds(hint):
        if not isinstance(value, dict):
            raise ValueError(f"{name} is {_shown(value)}; expected keys and values below it.")
        return typed(value)
    if list in kinds(hint):
        if not isinstance(value, list):
            raise ValueError(f"{name} is {_shown(value)}; expected a list such as [{_shown(value)}].")
        return [_scalar(get_args(hint), known.key, each, f"{name}[{i}]") for i, each in enumerate(value)]
    return _scalar(kinds(known.hint), known.key, value, name)


def idle_keys(schema: type, values: dict[str, Any], parent: str = "") -> Iterator[str]:
    """The keys of a mapping that are accepted and have no effect."""
    idle, known = IDLE.get(schema.__name__, {}), keys_of(schema)
    for name, value in values.items():
        inner = known[name].section if name in known else None
        if name in idle:
            yield f"{parent}{name}"
        elif inner and isinstance(value, dict):
            yield from idle_keys(inner, value, f"{parent}{name}.")


class _Reader:
    """Fills sections and collects what does not fit."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def section(self, schema: type, values: dict[str, Any], parent: str) -> Any:
        """A dataclass from its section, whose dotted name ends `parent`; None where it lacks a value."""
        filled: dict[str, Any] = {}
        known = keys_of(schema)
        for name, value, full_name in self._entries(schema, values, parent):
            given = self._value(known[name], value, full_name)
            if given is not _MISFIT:
                filled[name] = given
        for name, each in known.items():
            if each.required and filled.get(name) is None:
                inside = each.section is not None and isinstance(values.get(name), dict)
                if not inside and not any(p.startswith(f"{parent}{name} ") for p in self.problems):
                    self.problems.append(f"{parent}{name} is missing; add it.")
                return None
        return schema(**filled)

    def _entries(self, schema: type, values: dict[str, Any], parent: str) -> Iterator[tuple[str, Any, str]]:
        """The keys of a section that are known, with their values and full names."""
        known = keys_of(schema)
        values = dict(values)
        for name, within in ((each.name, each.key.within) for each in known.values() if each.key.within):
            if name in values:
                self.problems.append(_unknown(schema, parent, name))
                del values[name]
            section = values.get(within)
            if isinstance(section, dict) and name in section:
                values[within] = {key: value for key, value in section.items() if key != name}
                yield name, section[name], f"{parent}{within}.{name}"
        for name, value in values.items():
            full_name, idle = f"{parent}{name}", IDLE.get(schema.__name__, {}).get(name)
            if idle is not None:
                if idle.only and typed(value) not in idle.only:
                    self.problems.append(
                        f"{full_name} is {_shown(value)}; it has no effect here ({idle.why}): leave it out."
                    )
            elif name not in known:
                self.problems.append(_unknown(schema, parent, str(name)))
            else:
                yield name, value, full_name

    def _value(self, known: Described, value: Any, name: str) -> Any:
        """The value of a key in its type; `_MISFIT`, with a problem noted, where it is to be left out."""
        if value == "???":
            self.problems.append(f"{name} is missing; add it.")
            return _MISFIT
        if value is None:
            return self._nothing(known, name)
        if known.section is not None:
            if isinstance(value, dict):
                filled = self.section(known.section, value, f"{name}.")
                return _MISFIT if filled is None else filled
            self.problems.append(f"{name} is {_shown(value)}; expected keys and values below it.")
            return _MISFIT
        try:
            given = convert(known, value, name)
        except ValueError as error:
            self.problems.append(str(error))
            if list in kinds(known.hint) and not isinstance(value, list | dict):
                return self._value(known, [value], name)  # what was meant, for the checks that follow
            return _stand_in(known, None)
        problem = known.key.problem(name, given, known.hint)
        if problem is None:
            return given
        self.problems.append(problem)
        return given if isinstance(given, list) else _stand_in(known, given)

    def _nothing(self, known: Described, name: str) -> Any:
        """What `null` means: None, an empty text, or a section, list or mapping that is left out."""
        if type(None) in get_args(known.hint):
            return None
        default = known.default
        if not (known.required or known.section or isinstance(default, list | dict) or default == ""):
            self.problems.append(f"{name} is empty; give a value, or leave the line out.")
        return _MISFIT


def _stand_in(known: Described, value: Any) -> Any:
    """What a misfit is taken for: the nearest number; for a duration that must be given, one batch.

    Where leaving a number out means something else than giving it, and both ends of its range are excluded,
    the middle, so that nothing asks for what was given.
    """
    nearest = known.key.nearest(value)
    if nearest is not None:
        return type(value)(nearest)
    if known.default is None and known.key.above is not None and known.key.below is not None:
        return (known.key.above + known.key.below) / 2
    if known.required and known.key.units:
        return "1ba"
    if known.required and known.key.least is not None:
        return int(known.key.least)
    return _MISFIT


def _scalar(hints: tuple[Any, ...], key: Key, value: Any, name: str) -> Any:
    """A text, number or boolean in one of these types."""
    meant = typed(Plain(value)) if isinstance(value, str) and hints != (str,) else value
    for hint in (each for each in (bool, int, float) if each in hints):
        if isinstance(meant, hint) and isinstance(meant, bool) == (hint is bool):
            return meant
        if hint is float and isinstance(meant, int) and not isinstance(meant, bool):
            return float(meant)
    if float in hints and isinstance(value, str) and re.fullmatch(r"[-+]?(nan|inf)", value.strip().lower()):
        return float(value)
    if str in hints and isinstance(value, str):
        return str(value)
    if str in hints and key.units and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if str in hints and not isinstance(value, dict | list):
        word = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
        quoted = {True: "yes", False: "no"}[value] if isinstance(value, bool) else word
        raise ValueError(f'{name} is {word}; expected text: write it in quotes, such as "{quoted}".')
    expected = " or ".join(_WORDS[hint] for hint in hints)
    raise ValueError(f"{name} is {_shown(value)!r}; expected {expected}.")


def _unknown(schema: type, parent: str, name: str) -> str:
    """What to say of a key that is not known: its name here, what to do with it, or the keys there are."""
    known = [each for each, described in keys_of(schema).items() if not described.key.within]
    full_name = f"{parent}{name}"
    called = CALLED_HERE.get(name)
    if called in known:
        return f"unknown key {full_name}; it is called {parent}{called} here."
    if name in ADVICE:
        return f"unknown key {full_name}; {ADVICE[name]}."
    if near := cli.nearest(name, known, parent):
        return f"unknown key {full_name}{near}"
    more = ", ... (docs/configuration.md has all)" if len(known) > _LISTED else "."
    return f"unknown key {full_name}; known: {', '.join(known[:_LISTED])}{more}"


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
