"""Steps, evaluations and tokens: arithmetic on a configuration alone."""

import copy
from collections.abc import Iterator
from typing import Any

from llmshearing.config import Config, durations
from llmshearing.config.key import keys_of


def planned_steps(config: Config) -> int:
    """Steps of the whole run; 0 for one in epochs, unless `settled` has converted them."""
    return steps_in(config.max_duration, config)


def steps_in(duration: str, config: Config, epoch_sequences: int | None = None) -> int:
    """Steps in a duration such as 3200ba, 50000000tok, 1000sp (sequences) or 0.03dur.

    Args:
        epoch_sequences: sequences that the training domains hold together; None: durations in epochs have 0.
    """
    parsed = durations.parse(duration)
    if parsed.unit == "ep" and epoch_sequences is None:
        return 0
    steps = planned_steps(config) if parsed.unit == "dur" else None
    batch, seq_len = max(1, config.global_train_batch_size), max(1, config.max_seq_len)
    return durations.steps_in(duration, batch, seq_len, epoch_sequences, steps)


def settled(config: Config, epoch_sequences: int | None) -> Config:
    """A copy of a configuration, after `settle`."""
    config = copy.deepcopy(config)
    settle(config, epoch_sequences)
    return config


def settle(config: Config, epoch_sequences: int | None) -> None:
    """Convert to batches, in place, what nothing else could: the stream of training data has no end, a model
    knows no run, and Composer's schedules want the run and its warm-up in one unit.

    Args:
        epoch_sequences: sequences that the training domains hold together; None leaves epochs as they are.
    """
    batch, seq_len = max(1, config.global_train_batch_size), max(1, config.max_seq_len)

    def batches(duration: str, steps: int | None = None) -> str:
        if durations.parse(duration).unit == "ep" and epoch_sequences is None:
            return duration
        return f"{durations.steps_in(duration, batch, seq_len, epoch_sequences, steps)}ba"

    for key in ("max_duration", "eval_interval", "save_interval"):
        if durations.parse(getattr(config, key)).unit == "ep":
            setattr(config, key, batches(getattr(config, key)))
    run, warmup = (durations.parse(text).unit for text in (config.max_duration, config.scheduler.t_warmup))
    if warmup not in (run, "dur"):
        config.max_duration = batches(config.max_duration)
        config.scheduler.t_warmup = batches(config.scheduler.t_warmup)
    for section, key in _durations(config.model):
        setattr(section, key, batches(getattr(section, key), planned_steps(config)))


def _durations(section: Any) -> Iterator[tuple[Any, str]]:
    """The keys of a section, and of those inside it, that hold a duration."""
    for name, known in keys_of(type(section)).items():
        value = getattr(section, name)
        if known.section is not None and value is not None:
            yield from _durations(value)
        elif known.key.units and value is not None:
            yield section, name


def evaluations(config: Config) -> int:
    """Evaluations of the whole run."""
    interval = steps_in(config.eval_interval, config)
    if config.eval_loader is None:
        return 0
    return (planned_steps(config) // interval if interval else 0) + int(config.eval_first)


def training_tokens(config: Config) -> int:
    """Tokens that the run trains on."""
    return planned_steps(config) * config.global_train_batch_size * config.max_seq_len
