"""From a mapping to dataclasses, strictly: the one way in which YAML becomes typed."""

import difflib
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, ValidationError


def build(schema: type, values: Any, source: str = "configuration") -> Any:
    """Fill dataclass `schema` from a mapping, strictly.

    Raises:
        ValueError: for an unknown key, a wrong type or a missing value, naming the key.
    """
    plain = _without_idle_keys(schema, values)
    unknown = _unknown_keys(schema, plain)
    if unknown:
        raise ValueError("\n".join(f"{source}: {problem}" for problem in unknown))
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), plain))
    except MissingMandatoryValue as error:
        raise ValueError(f"{source}: {error.full_key} is missing; add it.") from error
    except ValidationError as error:
        problem = str(error).splitlines()[0]
        raise ValueError(f"{source}: {error.full_key}: {problem}.") from error


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


def _unknown_keys(schema: type, values: Any, parents: tuple[str, ...] = ()) -> list[str]:
    """Every key that the schema does not have: where it is and what was probably meant."""
    if not isinstance(values, dict):
        return []
    hints, known = get_type_hints(schema), [f.name for f in fields(schema)]
    problems = []
    for key, value in values.items():
        inner = next((t for t in _types_in(hints.get(str(key))) if is_dataclass(t)), None)
        if inner is not None:
            problems += _unknown_keys(inner, value, (*parents, key))  # type: ignore[arg-type]
        elif key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            meant = f"did you mean {'.'.join([*parents, nearest[0]])}?" if nearest else ""
            full_key = ".".join([*parents, str(key)])
            problems.append(f"unknown key {full_key}; {meant or 'known: ' + ', '.join(known) + '.'}")
    return problems
