"""Time of a training step: ours, dense and pruning, beside transformers', in one process, in turn.

    python -m benchmarks.steps [ROUNDS]

A step is forward, backward, clipping and AdamW; ours includes masks, Lagrangian and the losses by domain.
Writes `benchmarks/results/steps.json`.

Example:

    python -m benchmarks.steps 15
"""

import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.common import (
    BODY_25M,
    asked_rounds,
    hf_model,
    median_ratio,
    paired_seconds,
    shearing_model,
    token_batch,
    write_result,
)
from llmshearing.models.metrics import domain_sums

VOCABULARY, SEQUENCES, LENGTH = 32_000, 4, 512
ROUNDS = 15


def measure(rounds: int = ROUNDS) -> dict[str, float]:
    """The ratios of the table in `docs/performance.md`."""
    batch = {n: token_batch(VOCABULARY, SEQUENCES, LENGTH, n) for n in (7, 70)}
    models = {
        "hf": hf_model(BODY_25M, VOCABULARY, LENGTH),
        "dense": shearing_model(BODY_25M, VOCABULARY, LENGTH, 7, prune=False),
        "pruning": shearing_model(BODY_25M, VOCABULARY, LENGTH, 7, prune=True),
        "pruning, 70 domains": shearing_model(BODY_25M, VOCABULARY, LENGTH, 70, prune=True),
    }
    steps = {
        name: hf_step(model, batch[7]) if name == "hf" else our_step(model, batch[len(model.set_names)])
        for name, model in models.items()
    }
    seconds = paired_seconds(steps, rounds)
    evaluations = {
        "dense eval": our_eval(models["dense"], batch[7]),
        "masked eval": our_eval(models["pruning"], batch[7]),
    }
    seconds |= paired_seconds(evaluations, rounds)
    return {
        "dense step / HF step": median_ratio(seconds, "dense", "hf"),
        "pruning step / HF step": median_ratio(seconds, "pruning", "hf"),
        "pruning step, 70 domains / 7": median_ratio(seconds, "pruning, 70 domains", "pruning"),
        "masked eval / dense eval": median_ratio(seconds, "masked eval", "dense eval"),
        "seconds of an HF step": sorted(seconds["hf"])[rounds // 2],
    }


def hf_step(model: Any, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    """A step of transformers' model; it reports one loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        loss = model(input_ids=batch["input_ids"], labels=batch["labels"]).loss
        loss.backward()
        finish(optimizer)
        loss.item()

    return step


def our_step(
    model: Any, batch: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer | None = None
) -> Callable[[], None]:
    """A step of ours, losses of all domains included."""
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        outputs = model(batch)
        losses = model.loss(outputs, batch)
        losses["total"].backward()
        domain_sums(outputs["token_loss"], outputs["predicted"], batch["set"], len(model.set_names)).tolist()
        finish(optimizer)
        losses["total"].item()

    return step


def finish(optimizer: torch.optim.Optimizer) -> None:
    """Clip, step and forget the gradients."""
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    optimizer.zero_grad()


def our_eval(model: Any, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    """An evaluation batch with every metric."""
    metrics = model.get_metrics(is_train=False)

    def evaluate() -> None:
        model.eval()
        with torch.no_grad():
            outputs = model.eval_forward(batch)
            for metric in metrics.values():
                model.update_metric(batch, outputs, metric)
        model.train()

    return evaluate


def main() -> None:
    rounds = asked_rounds("benchmarks.steps", __doc__, ROUNDS)
    values = measure(rounds)
    config = {
        **BODY_25M,
        "vocabulary": VOCABULARY,
        "sequences": SEQUENCES,
        "length": LENGTH,
        "rounds": rounds,
    }
    write_result("steps", config, values)
    for name, value in values.items():
        sys.stdout.write(f"{name:32}{value:8.3f}\n")


if __name__ == "__main__":
    main()
