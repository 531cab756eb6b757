"""From a YAML file and `key=value` overrides to a `Config`, checked before anything is built.

A file may begin where another ends: `base: common.yaml`, a path relative to the file, takes everything from
there that the file does not say itself, section by section. Overrides come after that, references (`${key}`)
after these, and the values of resolvers (`${oc.env:DATA}`) last.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llmshearing.config.checks import config_problems
from llmshearing.config.plain import Plain, parse
from llmshearing.config.references import resolve_references
from llmshearing.config.run import Config, Place, Written
from llmshearing.config.strict import build_what_fits, idle_keys

logger = logging.getLogger(__name__)

BASE = "base"


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and `key=value` overrides into a checked `Config`.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for unknown keys (naming the nearest), values that do not fit or that contradict others.
    """
    config, problems = read_what_fits(path, overrides)
    problems += [f"{path}: {problem}" for problem in config_problems(config)]
    if problems:
        raise ValueError("\n".join(dict.fromkeys(problems)))  # those of lists are found twice
    return config


def read_what_fits(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Config, list[str]]:
    """A `Config` of what fits its schema, and what does not: unknown keys, naming the nearest; wrong values.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is not YAML, or a key is missing that everything depends on.
    """
    try:
        values = resolve_references(_with_overrides(_load(Path(path)), overrides))
        resolved = _with_home(_outside(values))
    except OmegaConfBaseException as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]}") from error
    config, problems = build_what_fits(Config, resolved, source=str(path))
    if config is None:
        raise ValueError("\n".join(problems))
    config.written = dict(_written(values, resolved))
    if idle := list(idle_keys(Config, resolved)):
        logger.info("without effect here (docs/configuration.md says why): %s", ", ".join(idle))
    return config, problems


def read_record(path: Path) -> Config:
    """The configuration that a run has written, read as data: nothing of the environment is looked up.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for unknown keys (naming the nearest) or values that do not fit.
    """
    config, problems = build_what_fits(Config, load_values(path), source=str(path))
    if problems:
        raise ValueError("\n".join(problems))
    return config


def load_values(path: Path) -> dict[str, Any]:
    """The values in a file that is read as data: references between keys are resolved, no others.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is not YAML of keys and values.
    """
    return resolve_references(_mapping(_text_of(path), str(path)))


def parse_record(text: str) -> dict[str, Any]:
    """`load_values` of the text in a checkpoint's record.

    Raises:
        ValueError: when it is not YAML of keys and values.
    """
    if not isinstance(text, str):
        raise ValueError(f"the recorded configuration is a {type(text).__name__}; expected YAML.")
    return resolve_references(_mapping(text, "the recorded configuration"))


# --------------------------------------------------------------------- one file


def _load(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """What a file and those that it is based on hold."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; expected a configuration, such as {path}/run.yaml.")
    if not path.is_file():
        told = f", the base of {above[-1]}; correct the path there, or copy that file too" if above else ""
        raise FileNotFoundError(f"Configuration file {path} does not exist{told}.")
    if path.resolve() in [each.resolve() for each in above]:
        chain = " -> ".join(map(str, (*above, path)))
        raise ValueError(f"{path} is based on itself: {chain}. Remove one of these lines `{BASE}: ...`.")
    values = _mapping(_text_of(path), str(path))
    base = values.pop(BASE, None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ValueError(f"{path}: {BASE} is {base}; expected the path of one file, relative to this one.")
    return _merged(_load(path.parent / base, (*above, path)), values)


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not plain YAML: {error}") from error


def _mapping(text: str, source: str) -> dict[str, Any]:
    try:
        values = parse(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{source} is not plain YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        kind = "a list" if isinstance(values, list) else "a text"
        raise ValueError(f"{source} holds {kind}; expected keys and values.")
    return values


def _merged(below: Any, above: Any) -> Any:
    """Two values, the second one's keys before the first one's, section by section."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return below | {
        key: _merged(below[key], value) if key in below else value for key, value in above.items()
    }


# -------------------------------------------------------------------- overrides


def _with_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(key.split(".")):
            raise ValueError(f"Override {override!r} is not of the form key=value.")
        try:
            value = parse(text)
        except (yaml.YAMLError, ValueError) as error:
            raise ValueError(f"The value of override {override!r} is not plain YAML: {error}") from error
        _set(values, key, value, override)
    return values


def _set(values: dict[str, Any], key: str, value: Any, override: str) -> None:
    *sections, name = key.split(".")
    inside: Any = values
    for depth, section in enumerate(sections, 1):
        if inside.get(section) is None:
            inside[section] = {}
        inside = inside[section]
        if not isinstance(inside, dict):
            place = ".".join(sections[:depth])
            raise ValueError(f"Override {override!r} does not fit {place}, which is {inside}.")
    inside[name] = _merged(inside.get(name), value)


# ------------------------------------------------------------------- resolvers


def _outside(values: dict[str, Any]) -> dict[str, Any]:
    """Values with every `${resolver:...}` replaced by what it gives, such as an environment variable."""
    if not any("${" in leaf for _, leaf in leaves(values) if isinstance(leaf, str)):
        return values
    resolved = OmegaConf.to_container(OmegaConf.create(_unmarked(values)), resolve=True)
    return _where_written(values, resolved)


def _where_written(values: Any, resolved: Any) -> Any:
    """Values, those of them that hold `${` as resolved."""
    if isinstance(values, dict):
        return {key: _where_written(value, resolved[key]) for key, value in values.items()}
    if isinstance(values, list):
        return [_where_written(*pair) for pair in zip(values, resolved, strict=True)]
    return resolved if isinstance(values, str) and "${" in values else values


def _written(values: dict[str, Any], resolved: dict[str, Any]) -> Iterator[tuple[Place, Written]]:
    """The texts with resolvers, and what they gave."""
    for place, leaf in leaves(values):
        if isinstance(leaf, str) and "${" in leaf:
            value: Any = resolved
            for part in place:
                value = value[part]
            yield place, Written(str(leaf), value)


def leaves(values: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """What is no mapping or list, with its place."""
    pairs = values.items() if isinstance(values, dict) else enumerate(values)
    for key, value in pairs:
        if isinstance(value, dict | list):
            yield from leaves(value, (*place, key))
        else:
            yield (*place, key), value


def _unmarked(value: Any) -> Any:
    """Plain texts as texts, which is what OmegaConf knows."""
    if isinstance(value, dict):
        return {key: _unmarked(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_unmarked(inner) for inner in value]
    return str(value) if isinstance(value, Plain) else value


def _with_home(value: Any) -> Any:
    """`value` with every text that begins with ~/ as a path below the user's home, as in a shell."""
    if isinstance(value, dict):
        return {key: _with_home(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_home(inner) for inner in value]
    return str(Path(value).expanduser()) if isinstance(value, str) and value.startswith("~/") else value
