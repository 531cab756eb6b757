"""The quickstart's pruning under each constraint and three seeds: losses, sparsity, time of a step.

    python -m benchmarks.constraints [FOLDER]

Needs what `scripts/quickstart.sh` leaves in `runs/quickstart`: its data and its source. Every run is pruning
(100 steps), the cut, and continued pre-training, by the quickstart's configurations; all is held equal but
`model.l0_module.constraint` and `seed`. Runs go to FOLDER (default: runs/constraints); those that are
complete there are not repeated. Writes `benchmarks/results/constraints.json`.

Example:

    python -m benchmarks.constraints runs/constraints
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import write_result
from llmshearing import cli

QUICKSTART = Path("runs/quickstart")
CONSTRAINTS, SEEDS = ("lagrangian", "projection"), (1, 2, 3)
LOSS, RATE = "metrics/eval/LanguageCrossEntropy", "throughput/tokens_per_sec"


def run(folder: Path, constraint: str, seed: int, source: Path) -> dict[str, Any]:
    """Prune, cut and continue; what was measured."""
    at = folder / f"{constraint}-{seed}"
    common = [f"data_local={source / 'mds'}", f"seed={seed}", "autoresume=true"]
    prune = [f"model.path={source / 'source.pt'}", f"model.l0_module.constraint={constraint}"]
    call("train.py", "configs/quickstart/prune.yaml", *common, *prune, f"save_folder={at}")
    pruned, continued = at / "pruned-latest-rank0.pt", folder / f"{at.name}-continue"
    if not pruned.exists():
        call("-m", "llmshearing", "prune", str(at / "latest-rank0.pt"))
    more = [f"model.path={pruned}", f"save_folder={continued}"]
    call("train.py", "configs/quickstart/target.yaml", *common, *more)
    steps = read(at)
    gap = [
        step["metrics/train/expected_sparsity"] - step["metrics/train/target_sparsity"]
        for step in steps
        if "metrics/train/expected_sparsity" in step
    ]
    return {
        "just pruned": last(steps, LOSS),
        "after continued pre-training": last(read(continued), LOSS),
        "largest distance of the overall sparsity from its target": max(map(abs, gap)),
        "tokens/s by step": {step["step"]: step[RATE] for step in steps if RATE in step},
    }


def call(*words: str) -> None:
    """Run Python on `words`, its output to stderr."""
    subprocess.run([sys.executable, *words], check=True, stdout=sys.stderr)


def read(folder: Path) -> list[dict[str, Any]]:
    """What a run logged, a line a step."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def last(steps: list[dict[str, Any]], key: str) -> float:
    """The last value of a metric."""
    return [step[key] for step in steps if key in step][-1]


def main() -> None:
    parser = cli.parser("benchmarks.constraints", __doc__)
    parser.add_argument("folder", metavar="FOLDER", nargs="?", type=Path, default=Path("runs/constraints"))
    parser.add_argument("--quickstart", metavar="FOLDER", type=Path, default=QUICKSTART)
    arguments = parser.parse_args()
    values: dict[str, Any] = {}
    for constraint in CONSTRAINTS:
        runs = [run(arguments.folder, constraint, seed, arguments.quickstart) for seed in SEEDS]
        values[constraint] = {"runs": runs}
        for what in ("just pruned", "after continued pre-training"):
            losses = [one[what] for one in runs]
            values[constraint][what] = {"mean": statistics.mean(losses), "sd": statistics.stdev(losses)}
            mean, deviation = values[constraint][what].values()
            sys.stdout.write(f"{constraint:12}{what:32}{mean:8.4f} +- {deviation:.4f}\n")
    write_result("constraints", {"seeds": SEEDS, "configuration": "configs/quickstart"}, values)


if __name__ == "__main__":
    main()
