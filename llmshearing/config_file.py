"""From a YAML file and `key=value` overrides to a `Config`, checked before anything is built."""

from collections.abc import Sequence
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llmshearing.config import Config, DataLoadingConfig
from llmshearing.config_checks import config_problems
from llmshearing.schema import build


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and `key=value` overrides into a checked `Config`.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for unknown keys (naming the nearest), a wrong type or contradicting values.
    """
    config = read_config(path, overrides)
    problems = config_problems(config)
    if problems:
        raise ValueError("\n".join(f"{path}: {problem}" for problem in problems))
    return config


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """`load_config` without looking for contradictions between keys: every key is known and of its type.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for unknown keys (naming the nearest) or a wrong type.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"Configuration file {path} does not exist.")
    try:
        loaded = OmegaConf.load(path)
        if not isinstance(loaded, DictConfig):
            raise ValueError(f"{path} holds a list; expected keys and values.")
        loaded.merge_with(OmegaConf.from_dotlist(_checked(overrides)))
        OmegaConf.resolve(loaded)
    except OmegaConfBaseException as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not plain YAML: {error}") from error
    config = build(Config, loaded, source=str(path))
    build(DataLoadingConfig, config.callbacks.get("data_loading") or {}, f"{path}: callbacks.data_loading")
    return config


def _checked(overrides: Sequence[str]) -> list[str]:
    for override in overrides:
        if "=" not in override:
            raise ValueError(f"Override {override!r} is not of the form key=value.")
    return list(overrides)
