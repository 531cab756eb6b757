"""What a configuration says against itself: values out of range and keys that contradict one another."""

import re
from typing import Any

from llmshearing.config import Config, DataLoadingConfig

_PRECISIONS = ("fp32", "amp_bf16", "amp_fp16", "amp_fp8")
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
    "scheduler.alpha_f": 0,
}


def config_problems(config: Config) -> list[str]:
    """Contradictions between keys, each with what to change; empty when there are none."""
    return _domain_problems(config.data_loading) + _duration_problems(config) + _range_problems(config)


def _domain_problems(domains: DataLoadingConfig) -> list[str]:
    if domains.set_names is None:
        stray = [k for k in ("proportion", "target_loss") if getattr(domains, k) is not None]
        return [f"callbacks.data_loading.{key} is set without set_names; name the domains." for key in stray]
    problems = []
    names = domains.set_names
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
    total = sum(domains.proportion or [1.0])
    if abs(total - 1) > 1e-3:
        problems.append(f"callbacks.data_loading.proportion sums to {total:.6g}; expected 1.")
    if domains.update_type not in ("doremi", "bandit", "constant"):
        problems.append(
            f"callbacks.data_loading.update_type is {domains.update_type!r}; expected doremi, bandit or "
            "constant."
        )
    return problems


def _duration_problems(config: Config) -> list[str]:
    problems = []
    for key in ("max_duration", "eval_interval", "save_interval", "console_log_interval"):
        value = getattr(config, key)
        units = ("ba", "tok", "sp") if key == "max_duration" else ("ba",)
        if not re.fullmatch(rf"\d+({'|'.join(units)})", value):
            problems.append(
                f"{key} is {value!r}; expected a number and a unit out of {', '.join(units)}, such as 3200ba."
            )
        elif key == "max_duration" and re.fullmatch(r"0+\D+", value):
            problems.append("max_duration is 0; expected at least one batch, such as 3200ba.")
    if config.autoresume and not config.save_folder:
        problems.append("autoresume is true without save_folder; set the folder to resume from.")
    return problems


def _range_problems(config: Config) -> list[str]:
    problems = []
    for key, least in _LEAST.items():
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        if not (isinstance(value, int | float) and value >= least) and not _is_auto(key, value):
            problems.append(f"{key} is {value!r}; expected a number, {least} or more.")
    if config.precision not in _PRECISIONS:
        problems.append(f"precision is {config.precision!r}; expected one of {', '.join(_PRECISIONS)}.")
    return problems


def _is_auto(key: str, value: Any) -> bool:
    return key == "device_train_microbatch_size" and value == "auto"
