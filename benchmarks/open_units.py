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

import statistics
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.common import (
    BODY_25M,
    hf_model,
    median_ratio,
    paired_seconds,
    positive,
    token_batch,
    write_result,
)
from benchmarks.memory import fresh, resident
from benchmarks.steps import hf_step, our_eval, our_step
from llmshearing import cli
from llmshearing.models.composer_llama import ComposerMosaicLlama
from llmshearing.pruning.l0 import L0Module

TARGET = {"d_model": 256, "n_heads": 4, "n_layers": 6, "intermediate_size": 688}
SEQUENCES, LENGTH, DOMAINS = 4, 512, 7
VOCABULARIES = (32_000, 4_000)
STEPS, WARM_UP, SAMPLED = 3200, 640, 20  # the published schedule, and how many of its steps are measured
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


def at(model: ComposerMosaicLlama, step: int) -> None:
    """Bring the masks to the schedule of `step`."""
    method = method_of(model)
    method.done = step
    method.after_step()
    method.begin_step(step, STEPS)


def pruning_steps(vocabulary: int, batch: Mapping[str, torch.Tensor]) -> dict[str, Callable[[int], None]]:
    """A training step of each way to execute, at a step of the schedule; the same masks in both."""
    steps = {}
    for execute in ("open", "all"):
        model = pruning_model(vocabulary, execute)
        weights = torch.optim.AdamW(model.model.transformer.parameters(), lr=0.0, fused=True)
        one = our_step(model, dict(batch), weights)

        def step(which: int, model: ComposerMosaicLlama = model, one: Callable[[], None] = one) -> None:
            at(model, which)
            one()

        steps[execute] = step
    return steps


def measure(rounds: int = ROUNDS) -> dict[str, Any]:
    """The ratios of the table in `docs/performance.md`."""
    values: dict[str, Any] = {}
    for vocabulary in VOCABULARIES:
        batch = token_batch(vocabulary, SEQUENCES, LENGTH, DOMAINS)
        steps = pruning_steps(vocabulary, batch)
        for share, step in {"100": STEPS - 1, "50": WARM_UP // 2, "0": 0}.items():
            seconds = paired_seconds({name: (lambda f=f: f(step)) for name, f in steps.items()}, rounds)
            ratio = median_ratio(seconds, "open", "all")
            values[f"open / all at {share} % of the target, vocabulary {vocabulary:,}"] = ratio
        if vocabulary == VOCABULARIES[0]:
            values |= over_schedule(steps["open"], vocabulary, batch)
    values |= evaluation(rounds)
    peaks = {execute: fresh(peak_bytes, execute) for execute in ("open", "all")}
    values["peak bytes at the target"] = peaks
    values["peak memory, open / all at the target"] = peaks["open"] / peaks["all"]
    return values


def over_schedule(
    step: Callable[[int], None], vocabulary: int, batch: Mapping[str, torch.Tensor]
) -> dict[str, float]:
    """The mean of a pruning run's steps over transformers' dense step, beside which each was taken."""
    dense = hf_step(hf_model(BODY_25M, vocabulary, LENGTH), dict(batch))
    dense()
    sampled = [round((i + 0.5) * STEPS / SAMPLED) for i in range(SAMPLED)]
    ratios = []
    for which in sampled:
        seconds = {"hf": [], "open": []}
        for _ in range(3):
            for name, found in paired_seconds_once({"hf": dense, "open": lambda w=which: step(w)}).items():
                seconds[name].append(found)
        ratios.append(median_ratio(seconds, "open", "hf"))
    return {"mean pruning step of the published schedule / HF step": statistics.mean(ratios)}
