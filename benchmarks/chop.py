"""What CHOP costs: a step with half of the layers closed, and what DimCHOP's scores add to one.

    python -m benchmarks.chop [ROUNDS]

A step is forward, backward and AdamW, of a body of 25M parameters. That of LayerCHOP, half of whose layers
are closed, stands beside the same step of the whole model, with a vocabulary of 4,000, where the body is
most of a step, and of 32,000. DimCHOP's share is the time of its scores over that of the rest of the step.
Writes `benchmarks/results/chop.json`.

Example:

    python -m benchmarks.chop 15
"""

import statistics
import sys
import time
from typing import Any

import torch

from benchmarks.common import BODY_25M, asked_rounds, median_ratio, paired_seconds, token_batch, write_result
from llmshearing.models.composer_llama import ComposerMosaicLlama

SEQUENCES, LENGTH = 4, 512
VOCABULARIES = (4_000, 32_000)
HALF = BODY_25M["n_layers"] // 2
TARGET = {"d_model": 256, "n_heads": 4, "intermediate_size": 688}
STEPS = 10_000  # of the run that the step stands for, long before its last choice
ROUNDS = 15


class Step:
    """A training step of a model with one method."""

    def __init__(self, vocabulary: int, **section: Any) -> None:
        torch.manual_seed(0)
        sizes = {**BODY_25M, "vocab_size": vocabulary, "max_seq_len": LENGTH}
        self.model = ComposerMosaicLlama({**sizes, **section}).train()
        self.model.return_logits = False
        if self.model.model.method is not None:
            self.model.model.method.after_sharding(self.model.model)
        self.optimizer = torch.optim.AdamW(self.model.model.transformer.parameters(), lr=1e-4, fused=True)
        self.batch = token_batch(vocabulary, SEQUENCES, LENGTH, 1)
        self.done = 0
        self.shares: list[float] = []

    def __call__(self) -> None:
        """A step; `shares` gets what the method's own work took of it."""
        start, own = time.perf_counter(), 0.0
        method = self.model.model.method
        if method is not None:
            method.begin_step(self.done, STEPS)
        self.optimizer.zero_grad()
        self.model(self.batch)["ce_loss"].backward()
        if method is not None:
            before = time.perf_counter()
            method.after_backward(self.model.model)
            own += time.perf_counter() - before
        self.optimizer.step()
        if method is not None:
            before = time.perf_counter()
            method.after_step(self.model.model)
            own += time.perf_counter() - before
        self.done += 1
        self.shares.append(own / (time.perf_counter() - start - own))


def measure(rounds: int = ROUNDS) -> dict[str, float]:
    """Ratios of LayerCHOP's step, and DimCHOP's scores as a part of the step without them."""
    found = {}
    for vocabulary in VOCABULARIES:
        plain = Step(vocabulary)
        layers = Step(vocabulary, layerchop={"n_layers": HALF, "warm_steps": "0ba"})
        seconds = paired_seconds({"plain": plain, "layers": layers}, rounds)
        ratio = median_ratio(seconds, "layers", "plain")
        found[f"LayerCHOP, {HALF} of {BODY_25M['n_layers']} layers, vocabulary {vocabulary:,}"] = ratio
        for name, section in {
            "tied": {"target_model": TARGET},
            "by column": {"tied": False, "sparsity": 0.5},
        }.items():
            step = Step(vocabulary, dimchop={**section, "warm_steps": "1000ba", "final_steps": "0ba"})
            for _ in range(rounds + 1):
                step()
            share = statistics.median(step.shares[1:])
            found[f"DimCHOP's scores, {name}, vocabulary {vocabulary:,}"] = share
    return found


def main() -> None:
    rounds = asked_rounds("benchmarks.chop", __doc__, ROUNDS)
    values = measure(rounds)
    config = {"body": BODY_25M, "sequences": SEQUENCES, "length": LENGTH, "rounds": rounds, "target": TARGET}
    write_result("chop", config, values)
    for name, value in values.items():
        sys.stdout.write(f"{name:60} {value:.3f}\n")


if __name__ == "__main__":
    main()
