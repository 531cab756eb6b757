"""Composer's parts by the names that a configuration gives them."""

import importlib.util
import inspect
from typing import Any

import composer.algorithms
import composer.callbacks
import composer.loggers

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
    "algorithms": {"gradient_clipping": composer.algorithms.GradientClipping},
}
_PACKAGES = {"wandb": "wandb", "mlflow": "mlflow", "tensorboard": "tensorboard"}
_ALWAYS: dict[str, Any] = {"speed_monitor": {"window_size": 10}}


def named(config: Config, section: str) -> dict[str, dict[str, Any]]:
    """The parts of a section with their arguments, those that every run has included."""
    parts = dict(getattr(config, section))
    if section == "callbacks":
        parts = _ALWAYS | parts
        parts.pop("data_loading", None)
    return {name: arguments or {} for name, arguments in parts.items()}


def build_components(config: Config, section: str) -> list[Any]:
    """The parts of a section: `callbacks`, `loggers` or `algorithms`.

    Raises:
        ValueError: for a name that is not known, or arguments that it does not have.
    """
    problems = component_problems(config, section)
    if problems:
        raise ValueError("\n".join(problems))
    return [REGISTRIES[section][name](**arguments) for name, arguments in named(config, section).items()]


def component_problems(config: Config, section: str) -> list[str]:
    """Names in a section that are not known, and arguments that they do not have."""
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
    return problems
