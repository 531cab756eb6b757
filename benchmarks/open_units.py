"""What pruning costs as units close: executing the open ones beside executing all, in one process, in turn.

    python -m benchmarks.open_units [ROUNDS]

A body of 25M parameters towards half its width, heads and intermediate and three quarters of its layers;
steps with every gate open, halfway to the target, and at it, of the same weights, masks and batch. The mean
over the published schedule (3,200 steps, of which 640 warm up) is that of 20 steps spread evenly over it,
beside transformers' dense step. Peak memory is measured in processes of their own.

Writes `benchmarks/results/open_units.json`.

Example:

    python -m benchmarks.open_units 9
"""

import itertools
import statistics
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
from benchmarks.memory import fresh, resident
from benchmarks.steps import hf_step, our_eval, our_step
from llmshearing.models.composer_llama import ComposerMosaicLlama
from llmshearing.pruning.l0 import L0Module

TARGET = {"d_model": 256, "n_heads": 4, "n_layers": 6, "intermediate_size": 688}
SEQUENCES, LENGTH, DOMAINS = 4, 512, 7
VOCABULARIES = (32_000, 4_000)
STEPS, WARM_UP, SAMPLED = 3200, 640, 20  # the published schedule, and how many of its steps are measured
# Before step 1 nothing is projected (`L0Module.after_step`), and the masks made here are not open.
POINTS = {0: 1, 50: WARM_UP // 2, 100: STEPS - 1}  # part of the target, in %, and the step that has it
ROUNDS = 9


def pruning_model(vocabulary: int, execute: str) -> ComposerMosaicLlama:
    """Our model in a pruning run of the published length, whose masks are always on schedule."""
    l0 = {"constraint": "projection", "lagrangian_warmup_steps": f"{WARM_UP}ba", "target_model": TARGET}
    cfg = {**BODY_25M, "vocab_size": vocabulary, "max_seq_len": LENGTH, "l0_module": l0, "execute": execute}
    torch.manual_seed(0)
    model = ComposerMosaicLlama({**cfg, "set_names": [f"domain{i}" for i in range(DOMAINS)]})
    model.return_logits = False
    for mask in method_of(model).masks.values():  # as unequal as masks are after some training
        torch.nn.init.normal_(mask.z_loga, std=4.0)  # type: ignore[union-attr,arg-type]
    return model


def method_of(model: ComposerMosaicLlama) -> L0Module:
    """The pruning method of a model."""
    method = model.model.method
    assert isinstance(method, L0Module)
    return method


def pruning_steps(vocabulary: int, step: int) -> dict[str, Callable[[], None]]:
    """A training step at `step` of the schedule, executing open units alone and all; new masks every time."""
    batch = token_batch(vocabulary, SEQUENCES, LENGTH, DOMAINS)
    steps = {}
    for execute in ("open", "all"):
        model = pruning_model(vocabulary, execute)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
        steps[execute] = scheduled(model, step, our_step(model, batch, optimizer))
    return steps


def scheduled(model: ComposerMosaicLlama, step: int, one: Callable[[], None]) -> Callable[[], None]:
    """`one`, with the masks on the schedule of `step` and new noise every time."""
    method = method_of(model)
    method.done = step
    method.after_step()
    seeds = itertools.count()

    def run() -> None:
        method.begin_step(step, STEPS)
        method.seed = next(seeds)
        one()
        method.after_step()

    return run


def measure(rounds: int = ROUNDS) -> dict[str, Any]:
    """The ratios of the table in `docs/performance.md`."""
    values: dict[str, Any] = {}
    for vocabulary in VOCABULARIES:
        for share, step in POINTS.items():
            seconds = paired_seconds(pruning_steps(vocabulary, step), rounds)
            name = f"step at {share} % of the target, open / all, vocabulary {vocabulary:,}"
            values[name] = median_ratio(seconds, "open", "all")
    values |= over_schedule(VOCABULARIES[0]) | evaluation(VOCABULARIES[0], rounds)
    peaks = {execute: fresh(peak_bytes, execute) for execute in ("open", "all")}
    values["peak memory of a step at the target, open / all"] = peaks["open"] / peaks["all"]
    values["peak bytes at the target"] = peaks
    return values


def over_schedule(vocabulary: int) -> dict[str, float]:
    """The mean of steps spread evenly over the schedule, each over transformers' dense step beside it."""
    batch = token_batch(vocabulary, SEQUENCES, LENGTH, DOMAINS)
    dense, ratios = hf_step(hf_model(BODY_25M, vocabulary, LENGTH), batch), []
    model = pruning_model(vocabulary, "open")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
    one = our_step(model, batch, optimizer)
    for i in range(SAMPLED):
        step = scheduled(model, round((i + 0.5) * STEPS / SAMPLED), one)
        ratios.append(median_ratio(paired_seconds({"hf": dense, "open": step}, 3), "open", "hf"))
    return {"mean pruning step of the published schedule / HF step": statistics.mean(ratios)}


def evaluation(vocabulary: int, rounds: int) -> dict[str, float]:
    """Evaluation with gates at the target over that of the dense source."""
    batch = token_batch(vocabulary, SEQUENCES, LENGTH, DOMAINS)
    models = {
        "dense": shearing_model(BODY_25M, vocabulary, LENGTH, DOMAINS, prune=False),
        "open": pruning_model(vocabulary, "open"),
    }
    seconds = paired_seconds({name: our_eval(model, batch) for name, model in models.items()}, rounds)
    return {"evaluation at the target / dense": median_ratio(seconds, "open", "dense")}


def peak_bytes(execute: str) -> int:
    """Bytes at the peak of two steps at the target, beyond what this process held before."""
    before, vocabulary = resident(), VOCABULARIES[0]
    batch = token_batch(vocabulary, SEQUENCES, LENGTH, DOMAINS)
    model = pruning_model(vocabulary, execute)
    step = scheduled(model, STEPS - 1, our_step(model, batch))
    step()
    step()
    return resident(peak=True) - before


def main() -> None:
    rounds = asked_rounds("benchmarks.open_units", __doc__, ROUNDS)
    values = measure(rounds)
    config = {**BODY_25M, "target": TARGET, "sequences": SEQUENCES, "length": LENGTH, "rounds": rounds}
    write_result("open_units", config, values)
    for name, value in values.items():
        sys.stdout.write(f"{name:70}{value}\n")


if __name__ == "__main__":
    main()
