"""Peak memory of a training step: ours, pruning, beside transformers', each in a process of its own.

Counted is what a process holds at its peak beyond what it held after imports: weights, gradients, AdamW's
state, activations, logits.

Takes no arguments. Writes `benchmarks/results/memory.json`. Example:

    python -m benchmarks.memory
"""

import multiprocessing
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import BODY_25M, hf_model, shearing_model, token_batch, write_result
from benchmarks.steps import hf_step, our_step
from llmshearing import cli

_FRESH = multiprocessing.get_context("forkserver")
_FRESH.set_forkserver_preload(["benchmarks.steps"])
SEQUENCES, LENGTH = 4, 512
VOCABULARIES = (32_000, 128_256)


def peak_bytes(kind: str, vocabulary: int, sizes: dict[str, int], length: int) -> int:
    """Run two steps of `kind` (hf, dense or pruning) in this process; bytes beyond the imports."""
    batch = token_batch(vocabulary, SEQUENCES, length, 7)
    before = resident()
    if kind == "hf":
        step = hf_step(hf_model(sizes, vocabulary, length), batch)
    else:
        step = our_step(shearing_model(sizes, vocabulary, length, 7, prune=kind == "pruning"), batch)
    step()
    step()
    return resident(peak=True) - before


def resident(peak: bool = False) -> int:
    """Bytes this process holds, mapped files included: now, or at its peak since it began.

    (`getrusage` would tell the peak of the process it was forked from where that was higher.)
    """
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"^{'VmHWM' if peak else 'VmRSS'}:\s+(\d+) kB", status, re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def measured(kind: str, vocabulary: int, sizes: dict[str, int], length: int = LENGTH) -> int:
    """`peak_bytes` in a process of its own."""
    return fresh(peak_bytes, kind, vocabulary, sizes, length)


def fresh(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` returns in a process that has imported everything and done nothing yet."""
    with _FRESH.Pool(1) as pool:
        return pool.apply(function, arguments)


def measure() -> dict[str, Any]:
    """Ratios of a pruning step's peak to that of an HF step, and the bytes behind them."""
    values: dict[str, Any] = {}
    for vocabulary in VOCABULARIES:
        peaks = {kind: measured(kind, vocabulary, BODY_25M) for kind in ("hf", "dense", "pruning")}
        values[f"pruning step / HF step, vocabulary {vocabulary:,}"] = peaks["pruning"] / peaks["hf"]
        values[f"peak bytes, vocabulary {vocabulary:,}"] = peaks
    return values


def main() -> None:
    cli.parser("benchmarks.memory", __doc__).parse_args()
    values = measure()
    write_result("memory", {**BODY_25M, "sequences": SEQUENCES, "length": LENGTH}, values)
    for name, value in values.items():
        sys.stdout.write(f"{name:50}{value}\n")


if __name__ == "__main__":
    main()
