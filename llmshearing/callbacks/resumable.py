"""What a checkpoint must hold to be resumed from: one table, with which it is compared before anything is.

It may come from anywhere, and Composer's state takes over most values as they are.
"""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from yaml import YAMLError

from llmshearing.config.durations import fits
from llmshearing.config.plain import parse

_COUNTS = (
    "epoch",
    "batch",
    "sample",
    "token",
    "batch_in_epoch",
    "sample_in_epoch",
    "token_in_epoch",
)


@dataclass(frozen=True)
class Part:
    """A part of a checkpoint.

    Attributes:
        expected: what it is, in words.
        fits: whether a value is that.
        needed: whether a checkpoint without it is rejected.
    """

    expected: str
    fits: Callable[[Any], bool]
    needed: bool = True


def check_contents(contents: Any, path: Path, optimizer: str, weights_only: bool) -> None:
    """Check that a checkpoint holds weights and, unless `weights_only`, all that resuming restores.

    Raises:
        ValueError: naming what is missing or is not what it should be.
    """
    if not _is_weights(_at(contents, "state.model")):
        raise ValueError(f"{path} is not a checkpoint of a run: it has no weights under state.model.")
    if weights_only:
        return
    optimizers = _at(contents, "state.optimizers")
    if optimizers is None or (isinstance(optimizers, Mapping) and optimizer not in optimizers):
        others = ", ".join(map(str, optimizers or {}))
        found = f"its optimizer state belongs to {others}" if others else "it holds no optimizer state"
        raise ValueError(
            f"{path} cannot be resumed: {found} (this run uses {optimizer}). Start a new run from its "
            "weights: load_weights_only=true."
        )
    for key, part in _PARTS.items():
        value = _at(contents, key)
        if not part.needed if value is None else part.fits(value):
            continue
        found = "nothing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
        raise ValueError(
            f"{path} cannot be resumed: found {found} as {key}, expected {part.expected}. Use another "
            "checkpoint, or start a new run from its weights: load_weights_only=true."
        )


def unfit(path: Path, what: str, error: Exception) -> ValueError:
    """For a part with the right types whose values cannot be taken over."""
    reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return ValueError(
        f"{path} cannot be resumed: found {what} that does not fit this run ({reason}), expected that of the "
        "same run. Use another checkpoint, or start a new run from its weights: load_weights_only=true."
    )


def _at(contents: Any, key: str) -> Any:
    """The value at a place; None where there is none."""
    for name in key.split("."):
        contents = contents.get(name) if isinstance(contents, Mapping) else None
    return contents


def _is_weights(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) and isinstance(weight, Tensor) for name, weight in value.items())
    )


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


def _is_timestamp(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and all(_is_count(value.get(key)) for key in _COUNTS)
        and all(
            isinstance(each, timedelta) if str(key).endswith("_wct") else _is_count(each)
            for key, each in value.items()
        )
    )


def _is_schedule(value: Any) -> bool:
    """Whether it is the state of a schedule, which takes over all of it as its attributes."""
    return (
        isinstance(value, Mapping)
        and _is_count(value.get("last_epoch"))
        and isinstance(value.get("base_lrs"), list)
        and all(isinstance(rate, int | float) for rate in value["base_lrs"])
        and not any(key == "optimizer" or callable(getattr(LambdaLR, str(key), None)) for key in value)
    )


def _is_configuration(value: Any) -> bool:
    try:
        return isinstance(parse(value), dict)
    except (AttributeError, TypeError, ValueError, YAMLError):
        return False


def _is_teacher(value: Any) -> bool:
    return _is_text(_at(value, "path")) and _is_text(_at(value, "sha256"))


def _is_division(value: Any) -> bool:
    return _is_count(_at(value, "processes")) and _is_count(_at(value, "microbatch"))


def _is_stream(value: Any) -> bool:
    """Whether it is what `StreamingDataset.state_dict` gives."""
    try:
        state = json.loads(value)
        since, counts = np.array(state["since"]), np.array(state["counts"])
        weights = np.array(state["weights"], np.float64)
        return (
            since.dtype.kind == counts.dtype.kind == "i"
            and weights.shape == (*since.shape, len(state["names"]))
            and counts.shape == weights.shape[1:]
            and bool((weights >= 0).all() and np.isfinite(weights).all())
            and all(_is_count(state[key]) for key in ("sample", "epoch_start"))
            and {"sizes", "seed", "exhausted", "shuffle"} <= state.keys()
        )
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError):
        return False


def _is_random(value: Any) -> bool:
    """Whether it is a list of states that generators of random numbers accept."""
    if not isinstance(value, list) or not value:
        return False
    try:
        for states in value:
            torch.Generator().set_state(states["torch"])
            random.Random().setstate(states["python"])
            np.random.RandomState().set_state(states["numpy"])
            if states.get("cuda", states["torch"]).dtype != torch.uint8:
                return False
    except Exception:  # the generators raise whatever comes
        return False
    return True


_PARTS = {
    "state.optimizers": Part("the optimizers' states by name", _is_mapping),
    "state.schedulers": Part("the schedules by name", _is_mapping),
    "state.schedulers.LambdaLR": Part("the state of a schedule", _is_schedule),
    "state.timestamp": Part("a mapping", _is_mapping),
    "state.timestamp.Timestamp": Part("steps, sequences and tokens so far", _is_timestamp),
    "state.rank_zero_seed": Part("a whole number", _is_count),
    "state.dataset_state": Part("a mapping", _is_mapping),
    "state.dataset_state.train": Part("a mapping", _is_mapping),
    "state.dataset_state.train.mixture": Part("the state of the training data", _is_stream),
    "state.scaler": Part("a mapping", _is_mapping, needed=False),
    "state.callbacks": Part(
        "the callbacks' states by name",
        lambda value: isinstance(value, Mapping) and all(map(_is_mapping, value.values())),
    ),
    "state.callbacks.RunRecord": Part("the record of the run", _is_mapping),
    "state.callbacks.RunRecord.config": Part("the configuration of the run", _is_configuration),
    "state.callbacks.RunRecord.data": Part("a hash", _is_text, needed=False),
    "state.callbacks.RunRecord.teacher": Part("path and sha256 of a teacher", _is_teacher, needed=False),
    "state.callbacks.FiniteGuard.skipped": Part("a whole number", _is_count, needed=False),
    "state.callbacks.DynamicLoadingCallback.updated_at": Part("a whole number", _is_count, needed=False),
    "state.callbacks.SpeedMonitor.total_eval_wct": Part(
        "a number", lambda value: isinstance(value, int | float), needed=False
    ),
    "rng": Part("the states of the random numbers by rank", _is_random),
    "division": Part("numbers of processes and of sequences", _is_division, needed=False),
    "max_duration": Part(
        "a duration, such as 320ba",
        lambda value: _is_text(value) and fits(value, ("ba", "tok", "sp", "ep"), positive=True),
        needed=False,
    ),
}
