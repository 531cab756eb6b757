"""A run's folder as numbers."""

import json
import math
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from llmshearing.config import Config
from llmshearing.config.reading import read_record
from llmshearing.pruning import Aim, aim_of, method_class
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.model_section import architecture_of
from llmshearing.shapes.units import KINDS

CONFIG, METRICS = "config.yaml", "metrics.jsonl"
_MASKS = re.compile(r"zs_s(\d+)\.safetensors")
_WITHOUT_MASKS = "Copy it again, or delete it: the report can do without it."
_RECORD = 'expected numbers such as {"step": 7, "loss/train/total": 3.1}; remove the line.'


@dataclass(frozen=True)
class Series:
    """One metric over a run."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """What a run's folder holds."""

    folder: Path
    config: Config
    metrics: dict[str, Series]
    mask_files: dict[int, Path]
    """Mask files by step, in the order of steps; none when the run does not prune."""

    @property
    def name(self) -> str:
        """The folder's name: that of the run may be shared by several."""
        return self.folder.resolve().name

    @property
    def source(self) -> Architecture:
        """The model at the first step."""
        return architecture_of(self.config.model)

    @property
    def aim(self) -> Aim | None:
        """What its pruning method was to do; None when it does not prune."""
        return aim_of(self.config.model, self.source)

    @property
    def target(self) -> Architecture | None:
        """The shape it is pruned to, None when it is not pruned or has no target shape."""
        return self.aim.target if self.aim else None

    @property
    def prunes(self) -> bool:
        """Whether the run learns masks."""
        return method_class(self.config.model) is not None

    @property
    def domains(self) -> list[str]:
        """Domains of the data, in their order."""
        return list(self.config.data_loading.set_names or [])

    @property
    def steps(self) -> int:
        """Steps that were trained."""
        trained = self.metrics.get("loss/train/total")
        return int(trained.steps[-1]) + 1 if trained is not None else 0

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a step over all devices."""
        return self.config.global_train_batch_size * self.config.max_seq_len

    def domain_metric(self, domain: str, kind: str) -> Series | None:
        """A domain's metric: `loss`, `weight` or `pass`."""
        if kind == "loss":
            return self.metrics.get(f"metrics/eval/{domain}_LanguageCrossEntropy")
        return self.metrics.get(f"metrics/train/{domain}_{kind}")

    @property
    def mask_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each kind of gates that the run learns."""
        kinds = self.aim.kinds if self.aim else []
        return {name: kind.shape(self.source) for name, kind in KINDS.items() if name in kinds}

    def masks(self, step: int) -> dict[str, NDArray[np.float32]]:
        """The deterministic gates after `step` steps by kind, in the shapes of `Kind.shape`.

        Raises:
            ValueError: when the file is damaged or holds something else.
        """
        path = self.mask_files[step]
        try:
            gates = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} cannot be read as masks ({error}). {_WITHOUT_MASKS}") from error
        shapes = {name: gate.shape for name, gate in gates.items()}
        if shapes != self.mask_shapes:
            raise ValueError(
                f"{path} holds {shapes}; expected the masks {self.mask_shapes}. {_WITHOUT_MASKS}"
            )
        return gates


def read_run(folder: Path) -> Run:
    """Read a run's folder, whether the run has ended or not.

    Raises:
        FileNotFoundError: when there is no such folder or it is not a run's.
        ValueError: when its configuration or metrics cannot be understood.
    """
    for path in (folder / CONFIG, folder / METRICS):
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no {path}; expected the save_folder of a run, which holds {CONFIG} and {METRICS}."
            )
    config = read_record(folder / CONFIG)
    run = Run(folder, config, read_metrics(folder / METRICS), {})
    if method_class(config.model):  # masks of later steps than the last are of an earlier, longer run
        masks = {step: path for step, path in _mask_files(folder).items() if step <= run.steps}
        run = replace(run, mask_files=masks)
    try:
        assert run.source
    except ValueError as error:  # a configuration without sizes
        raise ValueError(f"{folder / CONFIG}: {error}") from error
    return run


def read_metrics(path: Path) -> dict[str, Series]:
    """Every metric by name, finite values only; a last line that is being written is skipped.

    Raises:
        ValueError: for any other line that does not hold a step and numbers.
    """
    steps: dict[str, list[int]] = defaultdict(list)
    values: dict[str, list[float]] = defaultdict(list)
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line.decode()) if line.strip() else {}
        except (ValueError, RecursionError) as error:
            if number == len(lines) and isinstance(error, json.JSONDecodeError):
                break
            raise ValueError(f"{path}, line {number}: not JSON ({error}); {_RECORD}") from None
        if not _is_record(record):
            raise ValueError(f"{path}, line {number}: found {line[:60].decode(errors='replace')}; {_RECORD}")
        step = record.pop("step", 0)
        for key, value in record.items():
            steps[key].append(step)
            values[key].append(value)
    found = {key: _series(steps[key], values[key]) for key in steps}
    return {key: series for key, series in found.items() if len(series.steps)}


def _is_record(found: Any) -> bool:
    """Whether what a line holds is a step and metrics, all within what numpy can count."""
    if not isinstance(found, dict) or not isinstance(found.get("step", 0), int):
        return False
    return all(isinstance(v, float) or (isinstance(v, int) and abs(v) < 2**63) for v in found.values())


def _series(steps: list[int], values: list[float]) -> Series:
    """Finite values in the order of steps; of several at one step, the last that was written."""
    last = {step: value for step, value in zip(steps, values, strict=True) if math.isfinite(value)}
    ordered = sorted(last)
    return Series(np.asarray(ordered, np.int64), np.asarray([last[step] for step in ordered], np.float64))


def _mask_files(folder: Path) -> dict[int, Path]:
    found = {int(match[1]): path for path in folder.iterdir() if (match := _MASKS.fullmatch(path.name))}
    return dict(sorted(found.items()))
