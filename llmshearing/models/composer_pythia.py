"""Pythia (GPT-NeoX) as Composer's Trainer sees it."""

from dataclasses import replace
from typing import Any

from llmshearing.config import as_model_config
from llmshearing.models.composer_llama import ComposerMosaicLlama


class ComposerMosaicPythia(ComposerMosaicLlama):
    """`ComposerMosaicLlama` whose family is GPT-NeoX unless the configuration says otherwise."""

    def __init__(self, cfg: Any) -> None:
        cfg = as_model_config(cfg)
        super().__init__(replace(cfg, family=cfg.family or "gpt_neox"))
