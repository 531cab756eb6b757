"""From a YAML file and `key=value` overrides to a `Config`, checked before anything is built."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llmshearing.config.checks import config_problems
from llmshearing.config.keys import Config, DataLoadingConfig
from llmshearing.config.strict import build_what_fits


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and `key=value` overrides into a checked `Config`.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for unknown keys (naming the nearest), a wrong type or contradicting values.
    """
    config, problems = read_what_fits(path, overrides)
    problems += [f"{path}: {problem}" for problem in config_problems(config)]
    if problems:
        raise ValueError("\n".join(problems))
    return config


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """`load_config` without looking for contradictions between keys: every key is known and of its type.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for unknown keys (naming the nearest) or a wrong type.
    """
    config, problems = read_what_fits(path, overrides)
    if problems:
        raise ValueError("\n".join(problems))
    return config


def read_what_fits(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Config, list[str]]:
    """A `Config` of what fits its schema, and what does not: unknown keys, naming the nearest; wrong types.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is no YAML, or a key is missing that everything depends on.
    """
    config, problems = build_what_fits(Config, _load(path, overrides), source=str(path))
    if config is None:
        raise ValueError("\n".join(problems))
    section = config.callbacks.get("data_loading") or {}
    domains, more = build_what_fits(DataLoadingConfig, section, f"{path}: callbacks.data_loading")
    if more:
        config.callbacks["data_loading"] = asdict(domains) if domains else {}
    return config, problems + more


def _load(path: str | Path, overrides: Sequence[str]) -> Any:
    """Keys and values as they are written, overrides and references applied, `~` in paths expanded."""
    if Path(path).is_dir():
        raise IsADirectoryError(f"{path} is a folder; expected a configuration, such as {path}/run.yaml.")
    if not Path(path).is_file():
        raise FileNotFoundError(f"Configuration file {path} does not exist.")
    try:
        loaded = OmegaConf.load(path)
        if not isinstance(loaded, DictConfig):
            raise ValueError(f"{path} holds a list; expected keys and values.")
        for override in overrides:
            _apply(loaded, override)
        return _with_home(OmegaConf.to_container(loaded, resolve=True))
    except OmegaConfBaseException as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not plain YAML: {error}") from error


def _apply(loaded: DictConfig, override: str) -> None:
    key, equals, _ = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ValueError(f"Override {override!r} is not of the form key=value.")
    try:
        loaded.merge_with(OmegaConf.from_dotlist([override]))
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"Override {override!r} does not fit the value of {key}: {reason}.") from error


def _with_home(value: Any) -> Any:
    """`value` with every text that begins with ~/ as a path below the user's home, as a shell has it."""
    if isinstance(value, dict):
        return {key: _with_home(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_home(inner) for inner in value]
    return str(Path(value).expanduser()) if isinstance(value, str) and value.startswith("~/") else value
