"""What the trainer adds: wall time of a step in a run beside the bare step, and time to the first step.

Both kinds of step run in one process, in turn: a run of Composer's Trainer is stopped after every step by a
callback, which then takes the same step bare.

Takes no arguments. Writes `benchmarks/results/overhead.json`. Example:

    python -m benchmarks.overhead
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer.core import Callback, State
from composer.loggers import Logger
from streaming.base.format.mds import MDSWriter

from benchmarks.common import BODY_25M, write_result
from benchmarks.steps import our_step
from llmshearing import cli
from llmshearing.config import Config, build
from llmshearing.config.reading import load_config
from llmshearing.config.writing import to_yaml
from llmshearing.training import build_trainer

ROOT = Path(__file__).parents[1]
QUICKSTART = "configs/quickstart/source.yaml"
VOCABULARY, SEQUENCES, LENGTH, STEPS = 32_000, 4, 512, 20
DOMAINS = [f"domain{i}" for i in range(7)]


class BareStep(Callback):
    """After each step of the run, one step of the same model and batch without a trainer, timed."""

    def __init__(self) -> None:
        self.in_run: list[float] = []
        self.bare: list[float] = []
        self._start = 0.0
        self._batch: Any = None

    def before_dataloader(self, state: State, logger: Logger) -> None:
        now = time.perf_counter()
        if self._start:
            self.in_run.append(now - self._start)
        if self._batch is not None:
            step = our_step(state.model, self._batch, state.optimizers[0])
            begin = time.perf_counter()
            step()
            self.bare.append(time.perf_counter() - begin)
        self._start = time.perf_counter()

    def after_dataloader(self, state: State, logger: Logger) -> None:
        self._batch = state.batch


def trainer_overhead() -> float:
    """Median ratio of a step in a run to the bare step beside it, the first two left out."""
    with tempfile.TemporaryDirectory() as name:
        config = _config(Path(name))
        watch = BareStep()
        trainer = build_trainer(config)
        trainer.state.callbacks.append(watch)
        trainer.fit()
        trainer.close()
    pairs = list(zip(watch.in_run, watch.bare, strict=False))[2:]
    return statistics.median(run / bare for run, bare in pairs)


def write_mds(folder: Path, rows: int, length: int, domains: list[str], vocabulary: int) -> None:
    """Random tokens in one MDS folder; every domain has as many sequences."""
    tokens = np.random.default_rng(0).integers(0, vocabulary, (rows, length), dtype=np.uint16)
    with MDSWriter(out=str(folder), columns={"tokens": "bytes", "set": "str"}) as writer:
        for domain in domains:
            for row in tokens:
                writer.write({"tokens": row.tobytes(), "set": domain})


def _config(folder: Path) -> Config:
    for domain in DOMAINS:
        write_mds(folder / "data" / "for_prune" / domain, 16, LENGTH, [domain], VOCABULARY)
    dataset = {"local": str(folder / "data"), "split": "for_prune", "max_seq_len": LENGTH, "shuffle": True}
    values = {
        "max_seq_len": LENGTH,
        "model": {**BODY_25M, "vocab_size": VOCABULARY, "max_seq_len": LENGTH},
        "train_loader": {"dataset": dataset},
        "callbacks": {"data_loading": {"set_names": DOMAINS, "proportion": [1 / 7] * 7}},
        "algorithms": {"gradient_clipping": {"clipping_type": "norm", "clipping_threshold": 1.0}},
        "max_duration": f"{STEPS}ba",
        "global_train_batch_size": SEQUENCES,
        "device_train_microbatch_size": SEQUENCES,
        "precision": "fp32",
        "progress_bar": False,
        "save_folder": str(folder / "run"),
        "save_interval": "1000ba",
    }
    config = build(Config, values)
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text(to_yaml(config))
    return config


def seconds_to_first_step() -> float:
    """From the start of `train.py` with the quickstart's configuration to its first step's end."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = load_config(ROOT / QUICKSTART, [f"data_local={folder / 'mds'}"])
        domains, vocabulary = config.data_loading.set_names or [], config.model.vocab_size or 0
        for domain in domains:
            split = folder / "mds" / config.train_loader.dataset.split
            write_mds(split / domain, 64, config.max_seq_len, [domain], vocabulary)
        write_mds(folder / "mds" / "eval_merge", 8, config.max_seq_len, domains, vocabulary)
        command = [sys.executable, "train.py", QUICKSTART, f"data_local={folder / 'mds'}"]
        command += [f"save_folder={folder / 'run'}", "max_duration=1ba", "eval_interval=0ba"]
        start = time.perf_counter()
        run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        metrics = folder / "run" / "metrics.jsonl"
        while run.poll() is None and not _has_step(metrics):
            time.sleep(0.05)
        seconds = time.perf_counter() - start
        output = run.communicate()[0].decode()
    if run.returncode:
        raise RuntimeError(f"the run failed:\n{output[-2000:]}")
    return seconds


def _has_step(metrics: Path) -> bool:
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return any("loss/train/total" in json.loads(line) for line in lines if line.endswith("}"))


def measure() -> dict[str, float]:
    """Both figures of the table in `docs/performance.md`."""
    first = [seconds_to_first_step() for _ in range(3)]
    return {
        "step in a run / bare step": trainer_overhead(),
        "seconds to the first step": statistics.median(first),
    }


def main() -> None:
    cli.parser("benchmarks.overhead", __doc__).parse_args()
    values = measure()
    config = {**BODY_25M, "vocabulary": VOCABULARY, "sequences": SEQUENCES, "length": LENGTH, "steps": STEPS}
    write_result("overhead", config, values)
    for name, value in values.items():
        sys.stdout.write(f"{name:32}{value:8.3f}\n")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
