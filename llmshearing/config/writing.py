"""A `Config` as YAML: what a run's folder and its checkpoints record."""

import copy
from dataclasses import asdict
from typing import Any

from llmshearing.config.key import keys_along, keys_of, kinds
from llmshearing.config.plain import dump
from llmshearing.config.run import Config, Place, Written


def to_yaml(config: Config) -> str:
    """The configuration as YAML that `load_config` reads as the same.

    A text that came from the environment stands there as its reference, such as `${oc.env:DATA}/mds`: a
    record travels with the model, and what a user keeps in the environment must not. Numbers, choices and
    durations stand there as they are, since the model and a resume depend on them.
    """
    values: dict[str, Any] = copy.deepcopy(asdict(config))
    for name, known in keys_of(Config).items():
        if known.key.within:
            section = values.pop(name)
            values[known.key.within] = {name: section, **values[known.key.within]}
    for place, written in config.written.items():
        if _may_be_secret(place):
            _put_back(values, place, written)
    return dump(values)


def _may_be_secret(place: Place) -> bool:
    names = [str(part) for part in place if isinstance(part, str)]
    keys, rest = keys_along(Config, names)
    hint, key = keys[-1].hint, keys[-1].key
    return (
        bool(rest) or dict in kinds(hint) or (key.free_text and (str in kinds(hint) or list in kinds(hint)))
    )


def _put_back(values: dict[str, Any], place: Place, written: Written) -> None:
    """Put the text of the file where its value still stands."""
    inside: Any = values
    last: Any = place[-1]
    try:
        for part in place[:-1]:
            inside = inside[part]
        if inside[last] == written.value:
            inside[last] = written.text
    except (KeyError, IndexError, TypeError):
        return  # the program has set another value there, or none
