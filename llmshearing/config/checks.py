"""What is wrong with a configuration: values that do not fit their keys, keys that contradict others.

A check changes nothing.
"""

from collections.abc import Iterator
from typing import Any

from llmshearing.config.data import DataLoadingConfig
from llmshearing.config.key import keys_of
from llmshearing.config.run import Config


def config_problems(config: Config) -> list[str]:
    """What is out of range or contradicts something else, each with what to change."""
    problems = list(_value_problems(config)) + domain_problems(config.data_loading)
    if config.autoresume and not config.save_folder:
        problems.append("autoresume is true without save_folder; set the folder to resume from.")
    taught = config.distillation
    if taught is not None and not (taught.kl_weight or taught.ce_weight):
        problems.append(
            "distillation.kl_weight and distillation.ce_weight are both 0; expected one above 0: there would "
            "be nothing to learn."
        )
    return problems


def domain_problems(domains: DataLoadingConfig) -> list[str]:
    """What is wrong with domains, their weights and references, each and together."""
    problems = list(_value_problems(domains, "callbacks.data_loading."))
    names = domains.set_names
    if names is None:
        stray = [k for k in ("proportion", "target_loss") if getattr(domains, k) is not None]
        return problems + [
            f"callbacks.data_loading.{key} is set without set_names; name the domains." for key in stray
        ]
    for key, needed in {"proportion": True, "target_loss": domains.updates}.items():
        values = getattr(domains, key)
        if needed and values is None:
            problems.append(f"callbacks.data_loading.{key} is missing; give one number for each of {names}.")
        elif values is not None and len(values) != len(names):
            problems.append(
                f"callbacks.data_loading.{key} has {len(values)} numbers for {len(names)} domains {names}; "
                "give one for each of set_names, in their order."
            )
    return problems


def _value_problems(section: Any, parent: str = "") -> Iterator[str]:
    """What is wrong with each value of a section by itself, skipping sections that stand elsewhere."""
    for name, known in keys_of(type(section)).items():
        full_name, value = f"{parent}{name}", getattr(section, name)
        if known.key.within or value is None:
            continue
        if known.section is not None:
            yield from _value_problems(value, f"{full_name}.")
        elif (problem := known.key.problem(full_name, value, known.hint)) is not None:
            yield problem
