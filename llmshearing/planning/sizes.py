"""Steps, evaluations and tokens: arithmetic on a configuration alone."""

import math
import re

from llmshearing.config.keys import Config


def planned_steps(config: Config) -> int:
    """Steps of the whole run."""
    return steps_in(config.max_duration, config)


def steps_in(duration: str, config: Config) -> int:
    """Steps in a duration such as 3200ba, 50000000tok or 1000sp (sequences)."""
    match = re.fullmatch(r"(\d+)(ba|tok|sp)", duration)
    if match is None:
        return 0
    sequences = config.global_train_batch_size
    per_step = {"ba": 1, "tok": sequences * config.max_seq_len, "sp": sequences}[match[2]]
    return math.ceil(int(match[1]) / max(per_step, 1))


def evaluations(config: Config) -> int:
    """Evaluations of the whole run."""
    interval = steps_in(config.eval_interval, config)
    if config.eval_loader is None:
        return 0
    return (planned_steps(config) // interval if interval else 0) + int(config.eval_first)


def training_tokens(config: Config) -> int:
    """Tokens that the run trains on."""
    return planned_steps(config) * config.global_train_batch_size * config.max_seq_len
