"""Everything that is known about a configuration key, and the way from YAML to a typed `Config`.

file, its base, overrides  --plain, reading--> texts  --references--> values  --strict--> Config
key.py         what a field says of its key: documentation, range, choices, units, what a resume may change
model, data, distillation, run.py   the keys themselves, section by section
original.py    keys of the original and its forks: without effect here, or called otherwise
checks.py      what keys say against one another
resuming.py    what may differ from the run that wrote a checkpoint
writing.py     a Config as YAML
"""

from llmshearing.config.data import DataLoadingConfig, DatasetConfig, LoaderConfig
from llmshearing.config.distillation import DistillationConfig
from llmshearing.config.model import (
    DimChopConfig,
    L0Config,
    LayerChopConfig,
    MaskLLMConfig,
    ModelConfig,
    TargetConfig,
    as_model_config,
)
from llmshearing.config.run import Config, FsdpConfig, OptimizerConfig, SchedulerConfig
from llmshearing.config.strict import build

__all__ = [
    "Config",
    "DataLoadingConfig",
    "DatasetConfig",
    "DimChopConfig",
    "DistillationConfig",
    "FsdpConfig",
    "L0Config",
    "LayerChopConfig",
    "LoaderConfig",
    "MaskLLMConfig",
    "ModelConfig",
    "OptimizerConfig",
    "SchedulerConfig",
    "TargetConfig",
    "as_model_config",
    "build",
]
