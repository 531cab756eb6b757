"""What a configuration says against itself: values out of range and keys that contradict one another."""

import math
import re
from typing import Any

from llmshearing.config.keys import Config, DataLoadingConfig, L0Config
from llmshearing.datasets.mixture import SUM_TOLERANCE

_CHOICES = {
    "precision": ("fp32", "amp_bf16", "amp_fp16"),
    "optimizer.name": ("decoupled_adamw", "adamw"),
    "scheduler.name": ("cosine_with_warmup", "linear_decay_with_warmup", "constant_with_warmup"),
    "data_loading.update_type": ("doremi", "bandit", "constant"),
    "model.init_device": ("cpu", "meta", "mixed"),
    "model.l0_module.noise": ("per_rank", "shared"),
    "fsdp_config.sharding_strategy": ("FULL_SHARD", "SHARD_GRAD_OP"),
    "fsdp_config.mixed_precision": ("DEFAULT", "PURE", "FULL"),
    "fsdp_config.state_dict_type": ("full", "sharded"),
}
# The numbers a key may have, both ends included; keys of sections and values that are not set are left out.
_RANGES: dict[str, tuple[float, float]] = {
    "global_train_batch_size": (1, math.inf),
    "device_eval_batch_size": (1, math.inf),
    "device_train_microbatch_size": (1, math.inf),
    "max_seq_len": (2, math.inf),
    "seed": (0, 2**32 - 1),
    "max_skipped_steps": (0, math.inf),
    "save_num_checkpoints_to_keep": (-1, math.inf),
    "dist_timeout": (1, 10**9),
    "optimizer.lr": (0, math.inf),
    "optimizer.lag_lr": (0, math.inf),
    "optimizer.weight_decay": (0, math.inf),
    "optimizer.eps": (0, math.inf),
    "scheduler.alpha_f": (0, 1),
    "model.init_std": (0, math.inf),
    "model.loss_chunk_tokens": (1, math.inf),
    "train_loader.dataset.shuffle_seed": (0, 2**63 - 1),
    "train_loader.dataset.download_retry": (0, math.inf),
    "train_loader.dataset.download_timeout": (1, math.inf),
}
_LEVELS = ("debug", "info", "warning", "error", "critical")


def config_problems(config: Config) -> list[str]:
    """What is out of range or contradicts something else, each with what to change; empty when nothing does.

    A number out of its range is set to the nearest that is in it, so that a plan can go on with the rest.
    """
    return domain_problems(config.data_loading) + _duration_problems(config) + _range_problems(config)


def domain_problems(domains: DataLoadingConfig) -> list[str]:
    """What is wrong with the domains, their weights and references."""
    if domains.set_names is None:
        stray = [k for k in ("proportion", "target_loss") if getattr(domains, k) is not None]
        return [f"callbacks.data_loading.{key} is set without set_names; name the domains." for key in stray]
    problems = []
    names = domains.set_names
    if not names:
        return ["callbacks.data_loading.set_names is empty; name at least one domain, or leave it out."]
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
        if not re.fullmatch(rf"\d{{1,12}}({'|'.join(units)})|\d{{13,15}}(tok|sp)", value):
            problems.append(
                f"{key} is {value!r}; expected a whole number and a unit out of {', '.join(units)}, such as "
                "3200ba."
            )
        elif key in ("max_duration", "console_log_interval") and re.fullmatch(r"0+\D+", value):
            problems.append(f"{key} is 0; expected at least one batch, such as 3200ba.")
    if not re.fullmatch(r"\d+(ba|tok|sp)|(0?\.\d+|[01](\.0*)?)dur", config.scheduler.t_warmup):
        problems.append(
            f"scheduler.t_warmup is {config.scheduler.t_warmup!r}; expected a whole number and a unit out of "
            "ba, tok, sp, such as 320ba, or a part of the run, such as 0.03dur."
        )
    if config.autoresume and not config.save_folder:
        problems.append("autoresume is true without save_folder; set the folder to resume from.")
    return problems


def _range_problems(config: Config) -> list[str]:
    problems = [problem for key in _RANGES for problem in _number_problems(config, key)]
    for key, choices in _CHOICES.items():
        value = _value(config, key)
        same = str.lower if key.startswith("fsdp_config.") else str  # only those are read in any case
        if value is not None and same(value) not in map(same, choices):
            place = f"callbacks.{key}" if key.startswith("data_loading") else key
            problems.append(f"{place} is {value!r}; expected one of {', '.join(choices)}.")
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


def _number_problems(config: Config, key: str) -> list[str]:
    """What is wrong with the number at `key`, which is put right."""
    (least, most), value = _RANGES[key], _value(config, key)
    if value is None or (key == "device_train_microbatch_size" and value == "auto"):
        return []
    whole = key == "device_train_microbatch_size"  # others that are whole have that type
    fits = isinstance(value, int if whole else int | float) and least <= value <= most
    if fits and math.isfinite(value):
        return []
    section, _, name = key.rpartition(".")
    high = isinstance(value, int | float) and value > most
    setattr(_value(config, section) if section else config, name, most if high else least)
    expected = f"{least} or more" if most == math.inf else f"from {least} to {most}"
    kind = "whole number" if whole else "finite number" if value == math.inf else "number"
    return [f"{key} is {value!r}; expected a {kind}, {expected}."]


def _value(config: Config, key: str) -> Any:
    """The value at a dotted key; None where a section is not there."""
    value: Any = config
    for part in key.split("."):
        value = None if value is None else getattr(value, part)
    return value
