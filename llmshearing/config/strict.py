"""From a mapping to dataclasses, strictly: the one way in which YAML becomes typed."""

import difflib
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, ValidationError

_LISTED = 12  # known keys that a message names
_SHOWN = 40  # characters of a value that a message shows


def build(schema: type, values: Any, source: str = "configuration") -> Any:
    """Fill dataclass `schema` from a mapping, strictly.

    Raises:
        ValueError: for unknown keys, wrong types and missing values, naming each key.
    """
    filled, problems = build_what_fits(schema, values, source)
    if problems:
        raise ValueError("\n".join(problems))
    return filled


def build_what_fits(schema: type, values: Any, source: str = "configuration") -> tuple[Any, list[str]]:
    """Fill dataclass `schema` with the values that fit, the others left at their defaults; and the problems.

    A section with nothing below it counts as left out. What is filled is None where a value is missing that
    has no default.
    """
    plain = OmegaConf.to_container(values) if OmegaConf.is_config(values) else values
    if not isinstance(plain, dict):
        return None, [f"{source} is {_shown(plain)}; expected keys and values."]
    plain = _without_idle_keys(schema, plain)
    problems = dict(_take_out_misfits(schema, plain))
    while True:
        try:
            filled = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), plain))
            break
        except ValidationError as error:
            key = str(error.full_key)
            problems[key] = f"{key}: {str(error).splitlines()[0].rstrip('.')}."
            if not _take_out(plain, key):
                filled = None
                break
        except MissingMandatoryValue as error:
            problems.setdefault(str(error.full_key), f"{error.full_key} is missing; add it.")
            filled = None
            break
    return filled, [f"{source}: {problem}" for problem in problems.values()]


def _take_out(values: Any, full_key: str) -> bool:
    """Remove the value at a dotted key, or the nearest above it that is there; False if there is none."""
    first, _, rest = full_key.partition(".")
    first = first.partition("[")[0]
    if not isinstance(values, dict) or first not in values:
        return False
    if not (rest and _take_out(values[first], rest)):
        del values[first]
    return True


def _without_idle_keys(schema: type, plain: dict[Any, Any]) -> dict[Any, Any]:
    """`plain` less the keys that original files have and nothing here reads."""
    idle = getattr(schema, "accepted_without_effect", ())
    hints = get_type_hints(schema)
    kept: dict[Any, Any] = {}
    for key, value in plain.items():
        if key in idle:
            continue
        inner = _section(hints.get(str(key)))
        kept[key] = _without_idle_keys(inner, value) if inner and isinstance(value, dict) else value
    return kept


def _take_out_misfits(
    schema: type, values: dict[Any, Any], parents: tuple[str, ...] = ()
) -> Iterator[tuple[str, str]]:
    """Remove every key that the schema does not have or whose value is of another kind; which, and why."""
    hints, known = get_type_hints(schema), {f.name: f for f in fields(schema)}
    for key, value in list(values.items()):
        full_key, hint = ".".join([*parents, str(key)]), hints.get(str(key))
        inner = _section(hint)
        if key not in known:
            yield full_key, _unknown(full_key, str(key), list(known), parents)
        elif value is None and hint is not Any and not _may_be(hint, type(None)):
            if not (inner or _may_be(hint, list) or _may_be(hint, dict) or _has_no_default(known[key])):
                yield full_key, f"{full_key} is empty; give a value, or leave the line out."
        elif isinstance(value, dict) and inner:
            yield from _take_out_misfits(inner, value, (*parents, str(key)))
            continue
        elif value is not None and (inner or _may_be(hint, dict)) and not isinstance(value, dict):
            yield full_key, f"{full_key} is {_shown(value)}; expected keys and values below it."
        elif value is not None and _may_be(hint, list) and not isinstance(value, list):
            yield full_key, f"{full_key} is {_shown(value)}; expected a list such as [{_shown(value)}]."
            if not isinstance(value, dict):
                values[key] = [value]  # what was meant, for the checks that follow
                continue
        else:
            continue
        del values[key]


def _section(hint: Any) -> type | None:
    """The dataclass that a key's type is or may be."""
    return next((t for t in (hint, *get_args(hint)) if is_dataclass(t)), None)  # type: ignore[return-value]


def _may_be(hint: Any, kind: type) -> bool:
    """Whether a key's type names `kind`."""
    return any((get_origin(t) or t) is kind for t in (hint, *get_args(hint)))


def _has_no_default(field: Any) -> bool:
    return field.default == "???" or (field.default is MISSING and field.default_factory is MISSING)


def _unknown(full_key: str, key: str, known: list[str], parents: tuple[str, ...]) -> str:
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if nearest:
        return f"unknown key {full_key}; did you mean {'.'.join([*parents, nearest[0]])}?"
    more = ", ... (docs/configuration.md has all)" if len(known) > _LISTED else "."
    return f"unknown key {full_key}; known: {', '.join(known[:_LISTED])}{more}"


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
