"""A few training steps of a tiny model under a pruning method, without a trainer."""

from collections.abc import Callable
from typing import Any

import torch

from llmshearing.checkpoints.hf_files import HFModel, from_hf
from llmshearing.config import ModelConfig, build
from llmshearing.models.composer_llama import ComposerMosaicLlama
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.model_section import complete
from twins import CONFIGS, make, tokens

TWINS = ["llama grouped", "llama", "gpt_neox"]  # grouped-query, multi-head, and Pythia's attention


def architecture(name: str, n_layers: int = 2) -> Architecture:
    """The twin `name`, of another depth."""
    hf = HFModel("twin", CONFIGS[name].to_dict(), dict(make(CONFIGS[name]).state_dict()), {})
    return from_hf(hf)[1].resized(n_layers=n_layers)


def model(arch: Architecture, **section: Any) -> ComposerMosaicLlama:
    """A model of `arch` with random weights, and the method whose section is given, as a run begins."""
    torch.manual_seed(0)
    made = ComposerMosaicLlama(complete(build(ModelConfig, section), arch, "twin"))
    with torch.no_grad():
        for name, parameter in made.model.transformer.named_parameters():
            parameter.normal_(1.0 if "ln_" in name and name.endswith("weight") else 0.0, 0.15)
    if made.model.method is not None:
        made.model.method.after_sharding(made.model)
    return made


def train(
    made: ComposerMosaicLlama,
    steps: int,
    each: Callable[[int], None] = lambda step: None,
    spoil: Callable[[int], None] = lambda step: None,
) -> None:
    """Train for `steps` steps; `spoil` is called with gradients, `each` after every step."""
    decoder, method = made.model.train(), made.model.method
    assert method is not None
    optimizer = torch.optim.AdamW(decoder.transformer.parameters(), lr=1e-2)
    torch.manual_seed(1)
    method.after_step(decoder)
    for step in range(steps):
        method.begin_step(step, steps)
        ids = tokens(12)
        optimizer.zero_grad()
        made({"input_ids": ids, "labels": ids})["ce_loss"].backward()
        spoil(step)
        method.after_backward(decoder)
        if not all(p.grad is None or bool(p.grad.isfinite().all()) for p in decoder.transformer.parameters()):
            optimizer.zero_grad()  # a step that a run skips
        optimizer.step()
        method.after_step(decoder)
        each(step)
