"""What may differ between a run and the checkpoint that it resumes from, by the metadata of the keys."""

from typing import Any

from llmshearing.config.key import FREE, NOTED, SAME, keys_along
from llmshearing.config.plain import parse, typed
from llmshearing.config.run import Config
from llmshearing.config.strict import convert


def changes(recorded: str, current: str) -> tuple[list[str], list[str]]:
    """How two configurations (YAML) differ: in keys that a resumed run must not change, and in others.

    A key that one of them does not have counts with its default: a run of an earlier version did not know it.
    Keys that may change freely are skipped.
    """
    before, now = (_leaves(parse(text)) for text in (recorded, current))
    found: dict[str, list[str]] = {SAME: [], NOTED: [], FREE: []}
    for place in before | now:
        old, new = (_value(leaves, place) for leaves in (before, now))
        if old != new:
            found[_rule(place)].append(f"{'.'.join(place)} was {old!r}, is {new!r}")
    return found[SAME], found[NOTED]


def _leaves(values: Any, place: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Values by their place; an empty section is a value."""
    if not isinstance(values, dict) or not values:
        return {place: values}
    return {
        name: leaf for key, value in values.items() for name, leaf in _leaves(value, (*place, key)).items()
    }


def _rule(place: tuple[str, ...]) -> str:
    """What a resume may change at a place: the rule of the innermost key that has one."""
    rule = NOTED
    for depth, known in enumerate(keys_along(Config, place)[0], 1):
        rule = known.key.resume or rule
        if ".".join(place[depth:]) in known.key.same_below:
            return SAME
    return rule


def _value(leaves: dict[tuple[str, ...], Any], place: tuple[str, ...]) -> Any:
    """The value at a place in its key's type: None below an empty section, the default where nothing is."""
    if any(place[:depth] in leaves for depth in range(1, len(place))):
        return None
    keys, rest = keys_along(Config, place)
    known = keys[-1] if keys and not rest else None
    if place not in leaves:
        return None if known is None or known.section else known.default
    try:
        return convert(known, leaves[place]) if known else typed(leaves[place])
    except ValueError:  # of a version in which the key had another type
        return typed(leaves[place])
