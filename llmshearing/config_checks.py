"""What a configuration says against itself: values out of range and keys that contradict one another."""

import math
import re
from typing import Any

from llmshearing.config import Config, DataLoadingConfig, L0Config
from llmshearing.datasets.mixture import SUM_TOLERANCE

_CHOICES = {
    "precision": ("fp32", "amp_bf16", "amp_fp16"),
    "optimizer.name": ("decoupled_adamw", "adamw"),
    "scheduler.name": ("cosine_with_warmup", "linear_decay_with_warmup", "constant_with_warmup"),
    "data_loading.update_type": ("doremi", "bandit", "constant"),
}
_LEAST = {
    "global_train_batch_size": 1,
    "device_eval_batch_size": 1,
    "device_train_microbatch_size": 1,
    "max_seq_len": 2,
    "seed": 0,
    "max_skipped_steps": 0,
    "optimizer.lr": 0,
    "optimizer.lag_lr": 0,
    "optimizer.weight_decay": 0,
    "optimizer.eps": 0,
    "scheduler.alpha_f": 0,
}
_LEVELS = ("debug", "info", "warning", "error", "critical")


def config_problems(config: Config) -> list[str]:
    """Contradictions between keys, each with what to change; empty when there are none."""
    return domain_problems(config.data_loading) + _duration_problems(config) + _range_problems(config)


def domain_problems(domains: DataLoadingConfig) -> list[str]:
    """What is wrong with the domains, their weights and references."""
    if domains.set_names is None:
        stray = [k for k in ("proportion", "target_loss") if getattr(domains, k) is not None]
        return [f"callbacks.data_loading.{key} is set without set_names; name the domains." for key in stray]
    problems = []
    names = domains.set_names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        problems.append(
            f"callbacks.data_loading.set_names has {', '.join(twice)} twice; name each domain once."
        )
    needed = {"proportion": True, "target_loss": domains.updates}
    for key, wanted in needed.items():
        values = getattr(domains, key)
        if wanted and values is None:
            problems.append(f"callbacks.data_loading.{key} is missing; give one number for each of {names}.")
        elif values is not None and len(values) != len(names):
            problems.append(
                f"callbacks.data_loading.{key} has {len(values)} numbers for {len(names)} domains {names}; "
                "give one for each of set_names, in their order."
            )
        if off := [value for value in values or [] if not 0 <= value < math.inf]:
            problems.append(f"callbacks.data_loading.{key} has {off[0]}; expected numbers of 0 or more.")
    total = sum(domains.proportion or [1.0])
    if abs(total - 1) > SUM_TOLERANCE:
        problems.append(f"callbacks.data_loading.proportion sums to {total:.6g}; expected 1.")
    return problems


def _duration_problems(config: Config) -> list[str]:
    problems = []
    for key in ("max_duration", "eval_interval", "save_interval", "console_log_interval"):
        value = getattr(config, key)
        units = ("ba", "tok", "sp") if key == "max_duration" else ("ba",)
        if not re.fullmatch(rf"\d+({'|'.join(units)})", value):
            problems.append(
                f"{key} is {value!r}; expected a whole number and a unit out of {', '.join(units)}, such as "
                "3200ba."
            )
        elif key in ("max_duration", "console_log_interval") and re.fullmatch(r"0+\D+", value):
            problems.append(f"{key} is 0; expected at least one batch, such as 3200ba.")
    if not re.fullmatch(r"\d+(ba|tok|sp)|\d*\.?\d+dur", config.scheduler.t_warmup):
        problems.append(
            f"scheduler.t_warmup is {config.scheduler.t_warmup!r}; expected a whole number and a unit out of "
            "ba, tok, sp, such as 320ba, or a part of the run, such as 0.03dur."
        )
    if config.autoresume and not config.save_folder:
        problems.append("autoresume is true without save_folder; set the folder to resume from.")
    return problems


def _range_problems(config: Config) -> list[str]:
    problems = []
    for key, least in _LEAST.items():
        value = _value(config, key)
        if not (isinstance(value, int | float) and value >= least) and not _is_auto(key, value):
            problems.append(f"{key} is {value!r}; expected a number, {least} or more.")
    for key, choices in _CHOICES.items():
        if _value(config, key) not in choices:
            place = f"callbacks.{key}" if key.startswith("data_loading") else key
            problems.append(f"{place} is {_value(config, key)!r}; expected one of {', '.join(choices)}.")
    if not config.dist_timeout > 0:
        problems.append(f"dist_timeout is {config.dist_timeout:g}; expected seconds, more than 0.")
    if config.eval_subset_num_batches < 1 and config.eval_subset_num_batches != -1:
        problems.append(
            f"eval_subset_num_batches is {config.eval_subset_num_batches}; expected 1 or more, or -1: all."
        )
    if config.python_log_level is not None and config.python_log_level.lower() not in _LEVELS:
        problems.append(
            f"python_log_level is {config.python_log_level!r}; expected one of {', '.join(_LEVELS)}."
        )
    problems += _sparsity_problems(config.model.l0_module)
    betas = config.optimizer.betas
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        problems.append(f"optimizer.betas is {betas}; expected two numbers from 0 to less than 1.")
    return problems


def _sparsity_problems(l0: L0Config | None) -> list[str]:
    sparsities = {"start_sparsity": l0.start_sparsity, "target_sparsity": l0.target_sparsity} if l0 else {}
    return [
        f"model.l0_module.{key} is {value:g}; expected from 0 to less than 1."
        for key, value in sparsities.items()
        if not 0 <= value < 1
    ]


def _value(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _is_auto(key: str, value: Any) -> bool:
    return key == "device_train_microbatch_size" and value == "auto"
