"""Pruning methods, and the export of what they keep.

method.py          the interface
l0.py              learned hard-concrete masks; hard_concrete.py and lagrangian.py hold its mathematics
layerchop.py       whole layers; layer_schemes.py says which, in which order and when
dimchop.py         dimensions by scores; platon.py holds its mathematics
maskllm.py         learned N:M masks on single weights; patterns.py holds its mathematics, sparse_linear.py
                   its layers, mask_file.py the files; nm_scores.py the masks that are computed once
cut.py             multiplies gates into weights, removes closed units

`METHODS` is the one list of methods; a new one is a file and a row here, and a section of `ModelConfig`.
"""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from llmshearing.config import ModelConfig
from llmshearing.pruning.dimchop import DimChop
from llmshearing.pruning.l0 import L0Module
from llmshearing.pruning.layerchop import LayerChop
from llmshearing.pruning.maskllm import MaskLLM
from llmshearing.pruning.method import Aim, Method
from llmshearing.shapes.architecture import Architecture

METHODS: dict[str, type[Method]] = {
    method.section: method for method in (L0Module, LayerChop, DimChop, MaskLLM)
}


def method_class(config: ModelConfig) -> type[Method] | None:
    """The method that a configuration names; None: nothing is pruned.

    Raises:
        ValueError: for more than one.
    """
    named = [section for section in METHODS if getattr(config, section) is not None]
    if len(named) > 1:
        sections = " and ".join(f"model.{section}" for section in named)
        raise ValueError(f"{sections} are both set; a run has one pruning method: remove the others.")
    return METHODS[named[0]] if named else None


def without_method(config: ModelConfig) -> ModelConfig:
    """The same model, not pruned."""
    return replace(config, **dict.fromkeys(METHODS))


def aim_of(config: ModelConfig, source: Architecture) -> Aim | None:
    """What the configured method is to do with `source`; None: nothing is pruned."""
    method = method_class(config)
    return None if method is None else method.aim(config, source)


def source_problems(config: ModelConfig, weights: Mapping[str, Tensor], path: str) -> list[str]:
    """Why the configured method does not fit the weights at `path`, which a run starts from."""
    method = method_class(config)
    return [] if method is None else method.source_problems(config, weights, path)


def build_method(config: ModelConfig) -> Method | None:
    """The configured method.

    Raises:
        ValueError: when it cannot reach its target.
    """
    method = method_class(config)
    return None if method is None else method(config)  # type: ignore[call-arg]
