"""The table of speed and memory: measured values beside their bars.

    python -m benchmarks.run_all [--show]

Runs steps, open_units, memory, distillation, chop, scoring, mask_learning, overhead, conversion,
data_tokenizing and data_loading, about 50 minutes on two cores.
Each writes `benchmarks/results/NAME.json`; the table is made from these files.

Example:

    python -m benchmarks.run_all --show
"""

import json
import sys
from typing import Any

from benchmarks import (
    chop,
    conversion,
    data_loading,
    data_tokenizing,
    distillation,
    mask_learning,
    memory,
    open_units,
    overhead,
    scoring,
    steps,
)
from benchmarks.common import RESULTS
from llmshearing import cli

_LOGITS = "memory beyond the frozen dense pass / 4 tensors of logits"
_TAUGHT = "step / (step without + teacher's pass)"

# what, result file, key in its values, the bar, and whether the value may not be below it (else: above)
TABLE: list[tuple[str, str, str, float, bool]] = [
    ("dense step / HF step", "steps", "dense step / HF step", 1.02, False),
    ("pruning step / HF step", "steps", "pruning step / HF step", 1.10, False),
    ("70 domains / 7", "steps", "pruning step, 70 domains / 7", 1.02, False),
    ("masked eval / dense eval", "steps", "masked eval / dense eval", 1.05, False),
    *(
        (
            f"pruning, {share} % closed, {words:,} words",
            "open_units",
            f"step at {share} % of the target, open / all, vocabulary {words:,}",
            bar,
            False,
        )
        for words, share, bar in (
            (32_000, 0, 1.03),
            (4_000, 0, 1.03),
            (32_000, 50, 0.75),
            (4_000, 50, 0.65),
            (32_000, 100, 0.42),
            (4_000, 100, 0.32),
        )
    ),
    (
        "   mean of a run / HF step",
        "open_units",
        "mean pruning step of the published schedule / HF step",
        0.52,
        False,
    ),
    ("   evaluation / dense", "open_units", "evaluation at the target / dense", 0.45, False),
    ("   memory at the target", "open_units", "peak memory of a step at the target, open / all", 0.80, False),
    (
        "memory of pruning / HF, 32,000 words",
        "memory",
        "pruning step / HF step, vocabulary 32,000",
        1.0,
        False,
    ),
    ("the same, 128,256 words", "memory", "pruning step / HF step, vocabulary 128,256", 0.7, False),
    *(
        (
            f"taught / apart, {kind}, {words} words",
            "distillation",
            f"{_TAUGHT}, {kind}, vocabulary {words}",
            1.05,
            False,
        )
        for words in ("32,000", "128,256")
        for kind in ("dense", "pruning")
    ),
    *(
        (
            f"   chunks added, {kind}, {words} words",
            "distillation",
            f"chunks of logits added, {kind}, vocabulary {words}",
            2.0,
            False,
        )
        for words in ("32,000", "128,256")
        for kind in ("dense", "pruning")
    ),
    ("half of the layers / all", "chop", "LayerCHOP, 4 of 8 layers, vocabulary 4,000", 0.55, False),
    ("DimCHOP's scores / step", "chop", "DimCHOP's scores, tied, vocabulary 4,000", 0.10, False),
    ("the same, 32,000 words", "chop", "DimCHOP's scores, tied, vocabulary 32,000", 0.10, False),
    ("activation scores / forward", "scoring", "activation / forward", 1.10, False),
    ("Taylor's scores / both passes", "scoring", "taylor / forward and backward", 1.10, False),
    *(
        (
            f"learning 2:4, {tokens} tokens",
            "mask_learning",
            f"masks / frozen dense, {tokens} tokens",
            1.6,
            False,
        )
        for tokens in ("2,048", "4,096")
    ),
    ("   memory / 4 tensors", "mask_learning", _LOGITS, 1.05, False),
    ("HF -> Composer / copying", "conversion", "HF -> Composer / copy, time", 2.0, False),
    ("   memory / source", "conversion", "HF -> Composer, memory / source", 1.15, False),
    ("Composer -> HF / copying", "conversion", "Composer -> HF / copy, time", 2.0, False),
    ("   memory / source", "conversion", "Composer -> HF, memory / source", 1.15, False),
    ("prune_and_save / copying", "conversion", "prune_and_save / read and write, time", 2.0, False),
    ("   memory / source", "conversion", "prune_and_save, memory / source", 1.15, False),
    ("seconds to the first step", "overhead", "seconds to the first step", 12.0, False),
    ("step in a run / bare step", "overhead", "step in a run / bare step", 1.03, False),
    ("tokenizing / encode_batch", "data_tokenizing", "rate of tokenizing / encode_batch", 0.9, True),
    ("loading, million tokens/s", "data_loading", "million tokens/s, 7", 20.0, True),
    ("planning a batch, ms", "data_loading", "milliseconds to plan a batch of 256", 1.0, False),
    ("mixture state, bytes", "data_loading", "state in bytes after 48,000 steps", 65536, False),
    ("resuming at step 48,000, s", "data_loading", "seconds to resume at step 48,000", 2.0, False),
]


def main() -> None:
    parser = cli.parser("benchmarks.run_all", __doc__)
    parser.add_argument("--show", action="store_true", help="measure nothing; print what the files hold")
    if not parser.parse_args().show:
        for module in (
            steps,
            open_units,
            memory,
            distillation,
            chop,
            scoring,
            mask_learning,
            overhead,
            conversion,
            data_tokenizing,
            data_loading,
        ):
            sys.argv = [module.__name__]
            module.main()
    sys.stdout.write(table())


def table() -> str:
    """The rows of `TABLE` with what the result files hold."""
    lines = [f"{'':40}{'measured':>10}{'bar':>10}"]
    for what, file, key, bar, at_least in TABLE:
        value = _value(file, key)
        if value is None:
            lines.append(f"{what:40}{'-':>10}{bar:>10.2f}  not measured")
            continue
        met = value >= bar if at_least else value <= bar
        lines.append(f"{what:40}{value:>10.3f}{bar:>10.2f}  {'met' if met else 'NOT MET'}")
    return "\n".join(lines) + "\n"


def _value(file: str, key: str) -> float | None:
    path = RESULTS / f"{file}.json"
    values: dict[str, Any] = json.loads(path.read_text())["values"] if path.exists() else {}
    return values.get(key)


if __name__ == "__main__":
    main()
