"""Composer's callbacks, loggers and algorithms by the names that a configuration uses."""

import importlib.util
import inspect
import math
from typing import Any

import composer.callbacks
import composer.loggers

from llmshearing.callbacks.clipping import GradientClipping
from llmshearing.config import Config

REGISTRIES: dict[str, dict[str, Any]] = {
    "callbacks": {
        "speed_monitor": composer.callbacks.SpeedMonitor,
        "lr_monitor": composer.callbacks.LRMonitor,
        "memory_monitor": composer.callbacks.MemoryMonitor,
        "optimizer_monitor": composer.callbacks.OptimizerMonitor,
        "runtime_estimator": composer.callbacks.RuntimeEstimator,
        "system_metrics_monitor": composer.callbacks.SystemMetricsMonitor,
    },
    "loggers": {
        "wandb": composer.loggers.WandBLogger,
        "tensorboard": composer.loggers.TensorboardLogger,
        "mlflow": composer.loggers.MLFlowLogger,
        "file_logger": composer.loggers.FileLogger,
    },
    "algorithms": {"gradient_clipping": GradientClipping},
}
_CLIPPING = ("norm", "value", "adaptive")
_PACKAGES = {"wandb": "wandb", "mlflow": "mlflow", "tensorboard": "tensorboard"}
_ALWAYS: dict[str, Any] = {"speed_monitor": {"window_size": 10}}


def named(config: Config, section: str) -> dict[str, dict[str, Any]]:
    """The components of a section with their arguments, including those that every run has."""
    parts = dict(getattr(config, section))
    if section == "callbacks":
        parts = _ALWAYS | parts
    return {name: arguments or {} for name, arguments in parts.items()}


def build_components(config: Config, section: str) -> list[Any]:
    """Build the components of a section: `callbacks`, `loggers` or `algorithms`.

    Raises:
        ValueError: for an unknown name, or unknown or missing arguments.
    """
    problems = component_problems(config, section)
    if problems:
        raise ValueError("\n".join(problems))
    return [REGISTRIES[section][name](**arguments) for name, arguments in named(config, section).items()]


def component_problems(config: Config, section: str) -> list[str]:
    """Unknown names in a section, and arguments that do not fit."""
    registry, problems = REGISTRIES[section], []
    for name, arguments in named(config, section).items():
        if name not in registry:
            problems.append(f"{section}.{name} is not known; expected some of: {', '.join(registry)}.")
            continue
        if name in _PACKAGES and importlib.util.find_spec(_PACKAGES[name]) is None:
            problems.append(
                f"{section}.{name} needs the package {_PACKAGES[name]}: EXTRAS=track bash scripts/setup.sh "
                "installs it."
            )
        try:
            inspect.signature(registry[name]).bind(**arguments)
        except TypeError as error:
            problems.append(f"{section}.{name}: {error}.")
        problems += _value_problems(f"{section}.{name}", arguments)
    return problems


def _value_problems(place: str, arguments: dict[str, Any]) -> list[str]:
    """Values that Composer accepts silently, although the run then fails or trains wrongly."""
    problems = []
    if (kind := arguments.get("clipping_type", "norm")) not in _CLIPPING:
        problems.append(f"{place}.clipping_type is {kind!r}; expected one of {', '.join(_CLIPPING)}.")
    for key in ("clipping_threshold", "window_size"):
        value = arguments.get(key, 1)
        if not isinstance(value, int | float) or not 0 < value < math.inf:
            problems.append(f"{place}.{key} is {value!r}; expected a number above 0.")
    return problems
