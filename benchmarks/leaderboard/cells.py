"""Runs the cells of a leaderboard through the public commands and keeps what each measured.

A cell's folder gets `cell.json` when it is finished; a launch skips finished cells whose commands are still
the same, and repeats all others from their beginning.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.common import measured_on
from benchmarks.leaderboard.plan import Cell, Leaderboard, Method
from llmshearing.config.reading import load_values
from llmshearing.files import replacing

EVALUATION = "metrics/eval/LanguageCrossEntropy"


def run_all(board: Leaderboard, jobs: int, only: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Prepare, run every cell that is not finished, and return what all of them measured.

    Each method chooses among the trials by the first seed; the other seeds run with its choice.

    Args:
        jobs: cells at a time.
        only: names of the methods to run; default: all.

    Raises:
        RuntimeError: when a command of the preparation fails.
    """
    _prepare(board)
    with ThreadPoolExecutor(jobs) as pool:

        def measured(cells: list[Cell]) -> list[dict[str, Any]]:
            return list(pool.map(lambda cell: run_cell(cell, board.domains, jobs), cells))

        return _chosen(board, only, measured)


def finished(board: Leaderboard, only: Sequence[str] = ()) -> list[dict[str, Any]]:
    """What the cells that are finished measured; nothing is run. `only` as for `run_all`."""
    return _chosen(
        board,
        only,
        lambda cells: [
            found for cell in cells if (found := _finished(cell.folder / "cell.json", cell)) is not None
        ],
    )


def _chosen(
    board: Leaderboard, only: Sequence[str], measured: Callable[[list[Cell]], list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """The trials of the first seed, the best of each method marked, and the other seeds with that one."""
    methods = [method for method in board.methods if not only or method.name in only]
    first, *others = board.seeds
    pairs = [(method, target) for target in board.targets for method in methods]
    tried = measured(
        [board.cell(*pair, trial, first) for pair in pairs for trial in range(len(board.trials))]
    )
    chosen = {(m.name, target): _best(tried, m, target) for m, target in pairs}
    rest = measured(
        [board.cell(m, target, chosen[m.name, target], seed) for m, target in pairs for seed in others]
    )
    for result in tried:
        result["chosen"] = result["trial"] == chosen[result["method"], result["target"]]
    return tried + [{**result, "chosen": True} for result in rest]


def run_cell(cell: Cell, domains: Sequence[str], jobs: int) -> dict[str, Any]:
    """What a cell measured, from its file or by running it; with `failed`, the reason, where it could not."""
    file = cell.folder / "cell.json"
    if (finished := _finished(file, cell)) is not None:
        return finished
    shutil.rmtree(cell.folder, ignore_errors=True)
    cell.folder.mkdir(parents=True)
    result: dict[str, Any] = {
        "method": cell.method,
        "target": cell.target,
        "trial": cell.trial,
        "seed": cell.seed,
        "on": measured_on(),
        "jobs": jobs,
        "commands": [],
    }
    for words in cell.commands:
        seconds, failed = _command(words, cell.folder / "log.txt", jobs)
        result["commands"].append({"command": " ".join(words), "seconds": round(seconds, 2)})
        if failed:
            _say(f"FAILED {cell.folder}: {failed}")
            return {**result, "failed": failed}
    found = measured(cell.runs, domains)
    if not math.isfinite(found["loss"]):
        return {**result, "failed": f"the loss is {found['loss']}"}
    result |= found
    with replacing(file) as draft:
        draft.write_text(json.dumps(result, indent=1) + "\n")
    _say(f"{cell.target}: {cell.method}, trial {cell.trial}, seed {cell.seed}: {result['loss']:.4f}")
    return result


def _finished(file: Path, cell: Cell) -> dict[str, Any] | None:
    """What a finished cell measured; None where it is not, or was run by other commands."""
    try:
        found = json.loads(file.read_text())
        ran = [each["command"] for each in found["commands"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if ran == [" ".join(words) for words in cell.commands]:
        return found
    _say(f"{cell.folder} was run by other commands: it is repeated")
    return None


def measured(runs: Sequence[Path], domains: Sequence[str]) -> dict[str, Any]:
    """The losses of a cell's runs, one after the other, against tokens and seconds of training.

    Returns:
        `loss` and `losses` by domain at the end; `tokens` and `seconds` of training in all; `curve`, a list
        of [run, tokens, seconds, loss] of every evaluation; `cut`, the loss before the last run's first step.
    """
    tokens, seconds, curve, last = 0, 0.0, [], {}
    for number, run in enumerate(runs):
        config = load_values(run / "config.yaml")
        per_step = int(config["global_train_batch_size"]) * int(config["max_seq_len"])
        step, spent = 0, 0.0
        for line in (run / "metrics.jsonl").read_text().splitlines():
            values = json.loads(line)
            step = max(step, values["step"])
            spent = 3600 * values.get("time/train", spent / 3600)
            if EVALUATION in values:
                last = values
                curve.append(
                    [number, tokens + step * per_step, round(seconds + spent, 3), values[EVALUATION]]
                )
        tokens, seconds = tokens + step * per_step, seconds + spent
    of_last = [loss for number, _, _, loss in curve if number == len(runs) - 1]
    return {
        "loss": last[EVALUATION],
        "losses": {name: last[f"metrics/eval/{name}_LanguageCrossEntropy"] for name in domains},
        "cut": of_last[0],
        "tokens": tokens,
        "seconds": round(seconds, 2),
        "curve": curve,
    }


def _best(results: Sequence[Mapping[str, Any]], method: Method, target: str) -> int:
    """The trial with the lowest loss; 0 where all failed."""
    losses = {
        r["trial"]: r["loss"]
        for r in results
        if (r["method"], r["target"]) == (method.name, target) and "loss" in r
    }
    return min(losses, key=lambda trial: losses[trial], default=0)


def _prepare(board: Leaderboard) -> None:
    """Run what comes before all cells; a command that has succeeded is not repeated."""
    done = board.out / "prepared.txt"
    board.out.mkdir(parents=True, exist_ok=True)
    finished = done.read_text().splitlines() if done.exists() else []
    for words in board.preparation():
        text = " ".join(words)
        if text in finished:
            continue
        _say(f"$ {text}")
        _, failed = _command(words, board.out / "log.txt", jobs=1)
        if failed:
            raise RuntimeError(f"{text} failed: {failed} (see {board.out / 'log.txt'})")
        with done.open("a") as file:
            file.write(text + "\n")


def _command(words: Sequence[str], log: Path, jobs: int) -> tuple[float, str | None]:
    """Run a command; its seconds and, where it failed, the last line that it wrote."""
    program = [sys.executable, *words[1:]] if words[0] == "python" else list(words)
    if words[0] == "llmshearing":
        program = [sys.executable, "-m", *words]
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    environment = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": threads}
    start = time.perf_counter()
    with log.open("a") as file:
        file.write(f"$ {' '.join(words)}\n")
        file.flush()
        status = subprocess.run(
            program, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **environment}, check=False
        ).returncode
    lines = log.read_text(errors="replace").strip().splitlines()
    return time.perf_counter() - start, f"status {status}: {lines[-1][:300]}" if status else None


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
