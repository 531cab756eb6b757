"""The pruning method in a checkpoint, in the state in which the run saved it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmshearing.checkpoints.describing import run_config
from llmshearing.checkpoints.opening import Checkpoint
from llmshearing.config import ModelConfig
from llmshearing.pruning import METHODS, Method, without_method
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.model_section import complete


def load_method(checkpoint: Checkpoint, arch: Architecture, target: Mapping[str, Any]) -> Method:
    """The method in a checkpoint, in evaluation mode; its gates without noise have the target's sizes.

    Args:
        target: sizes by the names of `target_model`, in place of those in the run's configuration.

    Raises:
        ValueError: when there is no method, its target is not known, or it cannot reach the target.
    """
    section = checkpoint.section
    if section is None:
        raise ValueError(f"{checkpoint.path} has no masks: it is not the checkpoint of a pruning run.")
    recorded = run_config(checkpoint) or ModelConfig()
    config = replace(without_method(ModelConfig()), **{section: getattr(recorded, section)})
    config = complete(config, arch, str(checkpoint.path))
    return METHODS[section].restored(checkpoint.method_tensors, config, dict(target), str(checkpoint.path))
