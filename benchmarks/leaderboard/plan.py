"""From one YAML file to the cells of a leaderboard.

A method is a list of commands, the public ones that a user would type, with names in braces that the file or
the cell defines:

| name | stands for |
|---|---|
| `{out}`, `{cell}` | folder of the leaderboard; of the cell |
| `{seed}` | the seed of the cell |
| `{sizes}`, `{model_sizes}` | the target's shape as `d_model=128 ...`; with `model.` before each |
| `{target_sizes}`, `{dimchop_sizes}` | the same with `model.l0_module.target_model.` and `model.dimchop.target_model.` |
| a key of `define` or of the trial | its text, names in braces replaced in it, too |
"""  # noqa: E501

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_NAME = re.compile(r"\{(\w+)\}")
_KEYS = {"title", "out", "seeds", "define", "prepare", "targets", "trials", "methods", "domains"}
_METHOD_KEYS = {"name", "about", "shape", "commands", "runs"}


@dataclass(frozen=True)
class Method:
    """One way to choose what stays, and to train what does.

    Attributes:
        name, about: for the tables.
        shape: which of a target's shapes it makes.
        commands: what a cell runs, in order.
        runs: folders in the cell whose training counts, in order; the last one gives the result.
    """

    name: str
    about: str
    shape: str
    commands: tuple[str, ...]
    runs: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One method, target, trial and seed; its commands are words ready to run."""

    method: str
    target: str
    trial: int
    seed: int
    folder: Path
    commands: tuple[tuple[str, ...], ...]
    runs: tuple[Path, ...]


@dataclass(frozen=True)
class Leaderboard:
    """What a file asks for.

    Attributes:
        targets: shapes by the target's name and by kind of shape.
        trials: settings that every method may choose among, by the first seed; each has as many.
        domains: the domains whose losses are compared.
    """

    title: str
    out: Path
    seeds: tuple[int, ...]
    define: Mapping[str, str]
    prepare: tuple[str, ...]
    targets: Mapping[str, Mapping[str, Mapping[str, int]]]
    trials: tuple[Mapping[str, str], ...]
    methods: tuple[Method, ...]
    domains: tuple[str, ...]

    def preparation(self) -> list[tuple[str, ...]]:
        """The commands that come before all cells."""
        return [_words(command, {"out": str(self.out), **self.define}) for command in self.prepare]

    def cell(self, method: Method, target: str, trial: int, seed: int) -> Cell:
        """The cell of a method, a target, a trial and a seed.

        Raises:
            ValueError: when a command names something that nothing defines.
        """
        folder = self.out / "cells" / _plain(target) / _plain(method.name) / f"trial{trial}-seed{seed}"
        shape = self.targets[target][method.shape]
        names = {
            **self.define,
            **self.trials[trial],
            "out": str(self.out),
            "cell": str(folder),
            "seed": str(seed),
            "sizes": _pairs(shape, ""),
            "model_sizes": _pairs(shape, "model."),
            "target_sizes": _pairs(shape, "model.l0_module.target_model."),
            "dimchop_sizes": _pairs(shape, "model.dimchop.target_model."),
        }
        commands = tuple(_words(command, names) for command in method.commands)
        return Cell(
            method.name, target, trial, seed, folder, commands, tuple(folder / run for run in method.runs)
        )


def read_leaderboard(path: Path, changes: Mapping[str, str] | None = None) -> Leaderboard:
    """Read a leaderboard's file, strictly.

    Args:
        changes: texts in place of those that the file defines.

    Raises:
        ValueError: for unknown or missing keys, changes of what the file does not define, a method without
            its shape in a target, or names that share a folder.
    """
    values = yaml.safe_load(path.read_text())
    _check_keys(path, values, _KEYS, _KEYS - {"trials", "define"})
    defined = _texts(values.get("define") or {})
    if unknown := sorted(set(changes or {}) - set(defined)):
        raise ValueError(f"{path} does not define {unknown[0]}; it defines {', '.join(sorted(defined))}.")
    for method in values["methods"]:
        _check_keys(path, method, _METHOD_KEYS, _METHOD_KEYS)
    methods = tuple(
        Method(m["name"], m["about"], m["shape"], tuple(m["commands"]), tuple(m["runs"]))
        for m in values["methods"]
    )
    _check_folders(path, "methods", [method.name for method in methods])
    _check_folders(path, "targets", list(values["targets"]))
    for target, shapes in values["targets"].items():
        if lacking := sorted({m.shape for m in methods} - shapes.keys()):
            raise ValueError(f"{path}: target {target!r} has no shape {', '.join(lacking)}.")
    return Leaderboard(
        title=values["title"],
        out=Path(values["out"]),
        seeds=tuple(values["seeds"]),
        define={**defined, **(changes or {})},
        prepare=tuple(values["prepare"]),
        targets=values["targets"],
        trials=tuple(map(_texts, values.get("trials") or [{}])),
        methods=methods,
        domains=tuple(values["domains"]),
    )


def _check_keys(path: Path, values: Any, known: set[str], needed: set[str]) -> None:
    found = set(values) if isinstance(values, dict) else set()
    if unknown := sorted(found - known):
        raise ValueError(f"{path}: unknown key {unknown[0]}; known: {', '.join(sorted(known))}.")
    if missing := sorted(needed - found):
        raise ValueError(f"{path}: {missing[0]} is missing.")


def _check_folders(path: Path, what: str, names: Sequence[str]) -> None:
    for number, name in enumerate(names):
        for other in names[:number]:
            if _plain(name) == _plain(other):
                raise ValueError(
                    f"{path}: {what} {other!r} and {name!r} have the same folder, {_plain(name)}; rename one."
                )


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in values.items()}


def _words(command: str, names: Mapping[str, str]) -> tuple[str, ...]:
    """A command with every name replaced, as words."""
    for _ in range(10):  # a definition may name others
        if not _NAME.search(command):
            return tuple(shlex.split(command))
        unknown = [name for name in _NAME.findall(command) if name not in names]
        if unknown:
            raise ValueError(f"{command!r} names {unknown[0]}, which nothing defines.")
        command = _NAME.sub(lambda match: names[match[1]], command)
    raise ValueError(f"{command!r} is defined by itself.")


def _pairs(shape: Mapping[str, int], before: str) -> str:
    return " ".join(f"{before}{key}={size}" for key, size in shape.items())


def _plain(name: str) -> str:
    return re.sub(r"\W+", "-", name).strip("-").lower()
