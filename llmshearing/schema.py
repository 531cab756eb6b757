"""From a mapping to dataclasses, strictly: the one way in which YAML becomes typed."""

import difflib
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, ValidationError


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

    What is filled is None where a value is missing that has no default.
    """
    plain = _without_idle_keys(schema, values)
    problems = _take_out_unknown(schema, plain)
    while True:
        try:
            filled = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), plain))
            break
        except ValidationError as error:
            problems.append(f"{error.full_key}: {str(error).splitlines()[0].rstrip('.')}.")
            if not _take_out(plain, str(error.full_key)):
                filled = None
                break
        except MissingMandatoryValue as error:
            problems.append(f"{error.full_key} is missing; add it.")
            filled = None
            break
    return filled, [f"{source}: {problem}" for problem in problems]


def _take_out(values: Any, full_key: str) -> bool:
    """Remove the value at a dotted key, or the nearest above it that is there; False if there is none."""
    first, _, rest = full_key.partition(".")
    first = first.partition("[")[0]
    if not isinstance(values, dict) or first not in values:
        return False
    if not (rest and _take_out(values[first], rest)):
        del values[first]
    return True


def _without_idle_keys(schema: type, values: Any) -> Any:
    """`values` less the keys that original files have and nothing here reads."""
    plain = OmegaConf.to_container(values) if OmegaConf.is_config(values) else values
    if not isinstance(plain, dict):
        return plain
    idle = getattr(schema, "accepted_without_effect", ())
    hints = get_type_hints(schema)
    kept: dict[Any, Any] = {}
    for key, value in plain.items():
        if key in idle:
            continue
        inner = next((t for t in _types_in(hints.get(str(key))) if is_dataclass(t)), None)
        kept[key] = _without_idle_keys(inner, value) if inner else value  # type: ignore[arg-type]
    return kept


def _types_in(annotation: Any) -> tuple[Any, ...]:
    return (annotation, *get_args(annotation))


def _take_out_unknown(schema: type, values: Any, parents: tuple[str, ...] = ()) -> list[str]:
    """Remove every key that the schema does not have; says where each was and what was probably meant."""
    if not isinstance(values, dict):
        return []
    hints, known = get_type_hints(schema), [f.name for f in fields(schema)]
    problems = []
    for key, value in list(values.items()):
        inner = next((t for t in _types_in(hints.get(str(key))) if is_dataclass(t)), None)
        if inner is not None:
            problems += _take_out_unknown(inner, value, (*parents, key))  # type: ignore[arg-type]
        elif key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            meant = f"did you mean {'.'.join([*parents, nearest[0]])}?" if nearest else ""
            full_key = ".".join([*parents, str(key)])
            del values[key]
            problems.append(f"unknown key {full_key}; {meant or 'known: ' + ', '.join(known) + '.'}")
    return problems
