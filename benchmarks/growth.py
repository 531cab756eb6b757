"""How time and memory of a step grow with layers, width, length and vocabulary, beside transformers'.

One size is varied at a time from a small base. The line `added` is what growing from the first size to the
last adds, over what it adds to HF's: what a layer, a token or a vocabulary entry more costs.

Takes no arguments. Writes `benchmarks/results/growth.json`, and the figure `docs/growth.svg`. Example:

    python -m benchmarks.growth
"""

import statistics
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.common import hf_model, paired_seconds, shearing_model, token_batch, write_result
from benchmarks.memory import measured
from benchmarks.steps import hf_step, our_step
from llmshearing import cli

BASE = {"layers": 4, "width": 256, "length": 256, "vocabulary": 8000}
VARIED = {
    "layers": (2, 4, 8, 16),
    "width": (128, 256, 512),
    "length": (128, 256, 512, 1024),
    "vocabulary": (4000, 16000, 64000),
}
KINDS = ("hf", "dense", "pruning")
FIGURE = Path(__file__).parents[1] / "docs" / "growth.svg"


def sizes_of(point: dict[str, int]) -> dict[str, int]:
    """The model's sizes at a point: heads of 64, an MLP of 8/3 the width in whole 64s."""
    width = point["width"]
    mlp = (width * 8 // 3 + 63) // 64 * 64
    return {"d_model": width, "n_heads": width // 64, "n_layers": point["layers"], "intermediate_size": mlp}


def measure_point(point: dict[str, int], rounds: int = 9) -> dict[str, Any]:
    """Seconds (median), ratios to HF (paired) and peak bytes of a step at one point."""
    sizes, vocabulary, length = sizes_of(point), point["vocabulary"], point["length"]
    batch = token_batch(vocabulary, 4, length, 7)
    steps = {"hf": hf_step(hf_model(sizes, vocabulary, length), batch)}
    for kind in ("dense", "pruning"):
        model = shearing_model(sizes, vocabulary, length, 7, prune=kind == "pruning")
        steps[kind] = our_step(model, batch)
    seconds = paired_seconds(steps, rounds)
    ratios = {
        kind: statistics.median(a / b for a, b in zip(seconds[kind], seconds["hf"], strict=True))
        for kind in KINDS
    }
    memory = {kind: measured(kind, vocabulary, sizes, length) for kind in KINDS}
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    return {"point": point, "seconds": medians, "ratio to HF": ratios, "peak bytes": memory}


def measure() -> dict[str, list[dict[str, Any]]]:
    """Every point, by the size that is varied."""
    values: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIED}
    points = [(name, size) for name, sizes in VARIED.items() for size in sizes]
    for name, size in tqdm(points, "points"):
        values[name].append(measure_point({**BASE, name: size}))
    return values


def added(points: list[dict[str, Any]], measure: str, kind: str) -> float:
    """What growing from the first point to the last adds to a step, over what it adds to HF's."""
    first, last = points[0][measure], points[-1][measure]
    return (last[kind] - first[kind]) / (last["hf"] - first["hf"])


def draw(values: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Two rows of panels: ratio of time and of memory to HF, against each size."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(values), figsize=(13, 5.5), sharey="row", layout="constrained")
    for column, (name, points) in enumerate(values.items()):
        sizes = [point["point"][name] for point in points]
        for kind in KINDS:
            time = [point["ratio to HF"][kind] for point in points]
            memory = [point["peak bytes"][kind] / point["peak bytes"]["hf"] for point in points]
            for row, series in enumerate((time, memory)):
                axes[row][column].plot(sizes, series, marker="o", label=kind.replace("hf", "HF"))
                axes[row][column].set_xscale("log", base=2)
                axes[row][column].set_xticks(sizes, [f"{size:,}" for size in sizes])
                axes[row][column].grid(alpha=0.3)
        axes[1][column].set_xlabel(name)
    axes[0][0].set_ylabel("time of a step / HF")
    axes[1][0].set_ylabel("peak memory / HF")
    axes[0][0].legend()
    figure.savefig(path)


def main() -> None:
    cli.parser("benchmarks.growth", __doc__).parse_args()
    values = measure()
    write_result("growth", {"base": BASE, "sequences": 4}, values)
    draw(values, FIGURE)
    header = f"{'size':12}{'value':>9}{'dense/HF':>10}{'pruning/HF':>12}{'dense mem':>11}{'pruning mem':>13}"
    sys.stdout.write(header + "\n")
    for name, points in values.items():
        for point in points:
            ratio, peak = point["ratio to HF"], point["peak bytes"]
            memory = [peak[kind] / peak["hf"] for kind in ("dense", "pruning")]
            sys.stdout.write(
                f"{name:12}{point['point'][name]:9,}{ratio['dense']:10.3f}{ratio['pruning']:12.3f}"
                f"{memory[0]:11.2f}{memory[1]:13.2f}\n"
            )
        cells = [added(points, what, kind) for what in ("seconds", "peak bytes") for kind in KINDS[1:]]
        sys.stdout.write(
            f"{'':12}{'added':>9}{cells[0]:10.3f}{cells[1]:12.3f}{cells[2]:11.2f}{cells[3]:13.2f}\n"
        )


if __name__ == "__main__":
    main()
