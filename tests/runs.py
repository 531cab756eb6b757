"""Tiny training runs that tests share: data of three domains and a configuration that fits it."""

from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from streaming.base.format.mds import MDSWriter

from llmshearing.config import Config, build

DOMAINS = ["code", "books", "wiki"]
SEQ_LEN = 16
VOCABULARY = 64
SIZES = {"d_model": 32, "n_heads": 4, "n_layers": 3, "intermediate_size": 48, "vocab_size": VOCABULARY}
TARGET = {"d_model": 16, "n_heads": 2, "n_layers": 2, "intermediate_size": 24}


def write_data(folder: Path, sequences: int = 64) -> Path:
    """MDS data below `folder`: a training split of three domains and a merged evaluation split.

    Each domain counts up by a step of its own, so that there is something to learn.
    """
    evaluation = MDSWriter(out=str(folder / "eval_merge"), columns={"tokens": "bytes", "set": "str"})
    for index, domain in enumerate(DOMAINS):
        generator = np.random.default_rng(index)
        starts = generator.integers(0, VOCABULARY, sequences)
        tokens = (starts[:, None] + np.arange(SEQ_LEN) * (index + 1)) % VOCABULARY
        noise = generator.random(tokens.shape) < 0.1
        tokens = np.where(noise, generator.integers(0, VOCABULARY, tokens.shape), tokens).astype(np.uint16)
        columns = {"tokens": "bytes", "set": "str"}
        with MDSWriter(out=str(folder / "for_prune" / domain), columns=columns) as writer:
            for row in tokens[8:]:
                writer.write({"tokens": row.tobytes(), "set": domain})
        for row in tokens[:8]:
            evaluation.write({"tokens": row.tobytes(), "set": domain})
    evaluation.finish()
    return folder


def run_values(data: Path, save_folder: Path | None = None, prune: bool = True) -> dict[str, Any]:
    """The configuration of a run of a few steps, as YAML would give it."""
    loader = {"dataset": {"local": str(data), "max_seq_len": SEQ_LEN, "shuffle": True}}
    l0 = {"lagrangian_warmup_steps": "4ba", "target_model": dict(TARGET)}
    return {
        "max_seq_len": SEQ_LEN,
        "model": {**SIZES, "max_seq_len": SEQ_LEN, "l0_module": l0 if prune else None},
        "train_loader": {"dataset": {**loader["dataset"], "split": "for_prune"}},
        "eval_loader": {"dataset": {**loader["dataset"], "split": "eval_merge", "shuffle": False}},
        "callbacks": {
            "data_loading": {
                "dynamic": True,
                "set_names": DOMAINS,
                "proportion": [0.5, 0.25, 0.25],
                "target_loss": [2.0, 2.0, 2.0],
            }
        },
        "optimizer": {"lr": 3e-3, "lag_lr": 0.5},
        "scheduler": {"t_warmup": "2ba"},
        "algorithms": {"gradient_clipping": {"clipping_type": "norm", "clipping_threshold": 1.0}},
        "max_duration": "12ba",
        "eval_interval": "4ba",
        "global_train_batch_size": 8,
        "device_train_microbatch_size": 4,
        "precision": "fp32",
        "progress_bar": False,
        "save_folder": None if save_folder is None else str(save_folder),
        "save_interval": "4ba",
    }


def run_config(data: Path, save_folder: Path | None = None, prune: bool = True, **overrides: Any) -> Config:
    """`run_values` as a `Config`; overrides are `key__inner=value`."""
    values = OmegaConf.create(run_values(data, save_folder, prune))
    for key, value in overrides.items():
        OmegaConf.update(values, key.replace("__", "."), value)
    return build(Config, values)
