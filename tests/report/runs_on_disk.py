"""Run folders as a training run leaves them, made up in a moment: of any length and number of layers."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from llmshearing.config.writing import to_yaml
from runs import run_config

SHAPE = {"d_model": 64, "n_heads": 8, "n_layers": 4, "intermediate_size": 96, "vocab_size": 64}
TARGET = {"d_model": 32, "n_heads": 4, "n_layers": 3, "intermediate_size": 48}


def write_run(
    folder: Path,
    *,
    prune: bool = True,
    path: str | None = None,
    steps: int = 40,
    interval: int = 10,
    shape: dict[str, int] = SHAPE,
    target: dict[str, int] = TARGET,
    domains: tuple[str, ...] = ("code", "books"),
) -> Path:
    """A run folder whose loss falls from 4 towards 2 and whose masks close on their targets."""
    folder.mkdir(parents=True)
    count = len(domains)
    config = run_config(
        Path("data"),
        folder,
        prune=prune,
        max_duration=f"{steps}ba",
        callbacks__data_loading__set_names=list(domains),
        callbacks__data_loading__proportion=[1 / count] * count,
        callbacks__data_loading__target_loss=[2.0] * count,
    )
    config.model.path = path
    for key, value in shape.items():
        setattr(config.model, key, value)
    if config.model.l0_module and config.model.l0_module.target_model:
        for key, value in target.items():
            setattr(config.model.l0_module.target_model, key, value)
    (folder / "config.yaml").write_text(to_yaml(config))
    lines = [json.dumps(line) for line in _metrics(steps, interval, prune, domains, target, shape)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    for step in range(interval, steps + 1, interval) if prune else ():
        save_file(_gates(shape, target, step), folder / f"zs_s{step}.safetensors")
    return folder


def _metrics(steps, interval, prune, domains, target, shape):
    for step in range(steps + 1):
        loss = 2 + 2 * np.exp(-3 * step / steps)
        if step % interval == 0 and step:
            yield {
                "step": step,
                "metrics/eval/LanguageCrossEntropy": loss,
                **{f"metrics/eval/{d}_LanguageCrossEntropy": loss + i for i, d in enumerate(domains)},
                **{f"metrics/train/{d}_weight": 1 / len(domains) for d in domains},
                **{f"metrics/train/{d}_pass": 2 * step / steps for d in domains},
            }
        if step == steps:
            return
        line = {"step": step, "loss/train/total": loss, "loss/train/ce_loss": loss}
        if step == 0:
            line |= {f"metrics/train/{d}_weight": 1 / len(domains) for d in domains}
        yield line | (_constraint(step / steps, target, shape) if prune else {})


def _constraint(done: float, target: dict[str, int], shape: dict[str, int]) -> dict[str, float]:
    values = {"loss/train/lag_loss": done}
    kinds = {"head": "n_heads", "intermediate": "intermediate_size", "layer": "n_layers", "hidden": "d_model"}
    for kind, key in kinds.items():
        aim = 1 - target[key] / shape[key]
        values[f"metrics/train/expected_{kind}_sparsity"] = aim if done > 0.5 else aim * done
        values[f"metrics/train/target_{kind}_sparsity"] = aim
        values[f"metrics/train/lambda_1_{kind}"] = -done
    return values


def _gates(shape: dict[str, int], target: dict[str, int], step: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(step)
    layers = shape["n_layers"]
    gates = {
        "head": generator.random((layers, shape["n_heads"]), np.float32),
        "intermediate": generator.random((layers, shape["intermediate_size"]), np.float32),
        "hidden": generator.random(shape["d_model"], np.float32),
        "layer": np.ones(layers, np.float32),
    }
    for kind in ("head", "intermediate", "hidden"):
        gates[kind][gates[kind] < 0.5] = 0
    gates["layer"][target["n_layers"] :] = 0
    return gates
