"""What a teacher costs: time and peak memory of a training step with one, beside the same step without.

    python -m benchmarks.distillation [ROUNDS]

The teacher has the shape of the source: 25 million parameters without embeddings. A step is forward,
backward, clipping and AdamW, as in `benchmarks.steps`; the teacher's own forward pass makes its logits chunk
by chunk and does nothing with them. Time is measured in one process, in turn; memory in processes of their
own. Writes `benchmarks/results/distillation.json`.

Example:

    python -m benchmarks.distillation 15
"""

import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.common import (
    BODY_25M,
    asked_rounds,
    median_ratio,
    paired_seconds,
    shearing_model,
    token_batch,
    write_result,
)
from benchmarks.memory import fresh, resident
from benchmarks.steps import ROUNDS, our_step
from llmshearing.config import DistillationConfig
from llmshearing.models.distillation import Teacher
from llmshearing.models.loss import chunk_size
from llmshearing.shapes.counts import parameters
from llmshearing.shapes.units import Gates

SEQUENCES, LENGTH = 4, 512
VOCABULARIES = (32_000, 128_256)
KINDS = {"dense": False, "pruning": True}


def measure(rounds: int = ROUNDS) -> dict[str, float]:
    """Ratios of steps, and chunks of logits that a teacher adds to the peak beyond its weights."""
    values: dict[str, float] = {}
    for vocabulary in VOCABULARIES:
        values |= times(vocabulary, rounds)
        for kind in KINDS:
            values[f"chunks of logits added, {kind}, vocabulary {vocabulary:,}"] = added_chunks(
                kind, vocabulary
            )
    return values


def times(vocabulary: int, rounds: int) -> dict[str, float]:
    """Steps with a teacher over steps without plus the teacher's forward pass."""
    batch = token_batch(vocabulary, SEQUENCES, LENGTH, 7)
    teacher = new_teacher(vocabulary)
    values = {}
    for kind, prune in KINDS.items():
        plain, taught = (shearing_model(BODY_25M, vocabulary, LENGTH, 7, prune) for _ in range(2))
        taught.teacher = teacher
        steps = {
            "without": our_step(plain, batch),
            "teacher": teacher_pass(teacher, batch),
            "with": our_step(taught, batch),
        }
        seconds = paired_seconds(steps, rounds)
        seconds["apart"] = [sum(pair) for pair in zip(seconds["without"], seconds["teacher"], strict=True)]
        place = f"{kind}, vocabulary {vocabulary:,}"
        values[f"step / (step without + teacher's pass), {place}"] = median_ratio(seconds, "with", "apart")
        values[f"step / step without, {place}"] = median_ratio(seconds, "with", "without")
    return values


def new_teacher(vocabulary: int) -> Teacher:
    """A teacher of the source's shape with random weights."""
    decoder = shearing_model(BODY_25M, vocabulary, LENGTH, 7, prune=False).model
    return Teacher(decoder, DistillationConfig())


def teacher_pass(teacher: Teacher, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    """The forward pass of a teacher alone, its logits made chunk by chunk."""
    decoder = teacher._decoder
    tokens = chunk_size(decoder.arch.vocab_size)

    @torch.no_grad()
    def run() -> None:
        hidden = decoder.hidden_states(batch["input_ids"], Gates()).flatten(0, 1)
        for rows in hidden.split(tokens):
            torch.mm(rows, decoder.head.weight.T)

    return run


def added_chunks(kind: str, vocabulary: int) -> float:
    """Chunks of logits that the peak of a step rises by, beyond the teacher's weights."""
    without, with_it = (fresh(peak_bytes, kind, vocabulary, taught) for taught in (False, True))
    weights = 4 * parameters(new_teacher(vocabulary).arch)
    return (with_it - without - weights) / (4 * vocabulary * chunk_size(vocabulary))


def peak_bytes(kind: str, vocabulary: int, taught: bool) -> int:
    """Run two steps in this process; bytes beyond the imports."""
    batch = token_batch(vocabulary, SEQUENCES, LENGTH, 7)
    before = resident()
    model = shearing_model(BODY_25M, vocabulary, LENGTH, 7, KINDS[kind])
    model.teacher = new_teacher(vocabulary) if taught else None
    step = our_step(model, batch)
    step()
    step()
    return resident(peak=True) - before


def main() -> None:
    rounds = asked_rounds("benchmarks.distillation", __doc__, ROUNDS)
    values = measure(rounds)
    config: dict[str, Any] = {**BODY_25M, "sequences": SEQUENCES, "length": LENGTH, "rounds": rounds}
    write_result("distillation", config, values)
    for name, value in values.items():
        sys.stdout.write(f"{name:76}{value:8.3f}\n")


if __name__ == "__main__":
    main()
