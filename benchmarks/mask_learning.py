"""Learning 2:4 masks: the time of a step beside that of the frozen dense model, and the memory it adds.

    python -m benchmarks.mask_learning [ROUNDS]

Both steps are forward, and backward to everything that needs it: to the logits with masks, to the embedding's
output without. Times are paired, in one process, in turn; memory is the peak of a process of its own.
Writes `benchmarks/results/mask_learning.json`.

Example:

    python -m benchmarks.mask_learning 9
"""

import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.common import BODY_25M, median_ratio, paired_seconds, positive, token_batch, write_result
from benchmarks.memory import fresh, resident
from benchmarks.steps import finish
from llmshearing import cli
from llmshearing.models.composer_llama import ComposerMosaicLlama

VOCABULARY, LENGTH = 32_000, 512
SEQUENCES = (4, 8)
ROUNDS = 9


def model(sizes: dict[str, int], vocabulary: int, learns: bool) -> Any:
    """A frozen model, with masks to learn or without, at the first of 100 steps."""
    section: dict[str, Any] | None = {} if learns else None
    cfg = {**sizes, "vocab_size": vocabulary, "max_seq_len": LENGTH, "maskllm": section}
    made = ComposerMosaicLlama(cfg)
    made.return_logits = False
    method = made.model.method
    if method is not None:
        method.initialize(0, ())
        method.begin_step(0, 100)
    else:
        made.requires_grad_(False)
        embedding = made.model.transformer["wte"]
        embedding.register_forward_hook(lambda module, inputs, output: output.requires_grad_())
    return made.train()


def pass_over(made: Any, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    """Forward and backward, as in every microbatch of a step."""

    def run() -> None:
        made.loss(made(batch), batch)["total"].backward()

    return run


def step_over(made: Any, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    """The same with clipping and AdamW over the logits."""
    trained = [parameter for parameter in made.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def run() -> None:
        made.loss(made(batch), batch)["total"].backward()
        finish(optimizer)

    return run


def peak_bytes(learns: bool, sizes: dict[str, int], vocabulary: int, sequences: int) -> int:
    """Run two steps in this process; bytes beyond the imports at the peak."""
    batch = token_batch(vocabulary, sequences, LENGTH, 1)
    before = resident()
    made = model(sizes, vocabulary, learns)
    step = step_over(made, batch) if learns else pass_over(made, batch)
    step()
    step()
    return resident(peak=True) - before


def measure(sizes: dict[str, int], vocabulary: int, rounds: int) -> dict[str, Any]:
    """Ratios of time by tokens of a microbatch, and memory beyond the dense model, in tensors of logits."""
    values: dict[str, Any] = {}
    dense, learned, stepping = (model(sizes, vocabulary, learns) for learns in (False, True, True))
    for sequences in SEQUENCES:
        batch = token_batch(vocabulary, sequences, LENGTH, 1)
        functions = {
            "dense": pass_over(dense, batch),
            "masks": pass_over(learned, batch),
            "masks and AdamW": step_over(stepping, batch),
        }
        seconds = paired_seconds(functions, rounds)
        tokens = f"{sequences * LENGTH:,} tokens"
        values[f"masks / frozen dense, {tokens}"] = median_ratio(seconds, "masks", "dense")
        values[f"masks and AdamW / frozen dense, {tokens}"] = median_ratio(
            seconds, "masks and AdamW", "dense"
        )
        values[f"seconds of the frozen dense pass, {tokens}"] = sorted(seconds["dense"])[rounds // 2]
    logits = sum(p.nbytes for p in stepping.parameters() if p.requires_grad)
    base, peak = (fresh(peak_bytes, learns, sizes, vocabulary, SEQUENCES[0]) for learns in (False, True))
    values["bytes of the logits"] = logits
    values["memory beyond the frozen dense pass / 4 tensors of logits"] = (peak - base) / (4 * logits)
    return values


def main() -> None:
    parser = cli.parser("benchmarks.mask_learning", __doc__)
    help_of_rounds = f"pairs of steps to time ({ROUNDS})"
    parser.add_argument(
        "rounds", metavar="ROUNDS", nargs="?", default=ROUNDS, type=positive, help=help_of_rounds
    )
    rounds = parser.parse_args().rounds
    values = measure(BODY_25M, VOCABULARY, rounds)
    write_result("mask_learning", {**BODY_25M, "vocab_size": VOCABULARY, "rounds": rounds}, values)
    for name, value in values.items():
        sys.stdout.write(f"{name:60}{value:.4g}\n")


if __name__ == "__main__":
    main()
