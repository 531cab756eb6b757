"""Loading and mixing: tokens a second beside a bare MDS read; planning, state and resuming.

The loader reads random sequences of 7 and of 70 domains, shuffled; the bare read takes as many sequences with
mosaicml-streaming's reader alone.

Takes no arguments. Writes `benchmarks/results/data_loading.json`. Example:

    python -m benchmarks.data_loading
"""

import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from streaming.base.format import reader_from_json
from streaming.base.format.mds import MDSWriter

from benchmarks.common import median_ratio, paired_seconds, write_result
from llmshearing import cli
from llmshearing.config import DatasetConfig, LoaderConfig
from llmshearing.datasets.load_text_dataloader import build_text_dataloader
from llmshearing.datasets.mixture import Cursor, Mixture

SEQ_LEN = 4096
SEQUENCES = 7000  # over all domains
BATCH, BATCHES = 32, 100
ROUNDS = 41
STEPS, UPDATE_EVERY, GLOBAL_BATCH = 48_000, 400, 256


def write_domains(root: Path, domains: int) -> list[str]:
    """Random sequences in this many domains; returns their names."""
    names = [f"domain{i}" for i in range(domains)]
    rng = np.random.default_rng(0)
    for name in names:
        with MDSWriter(out=str(root / name), columns={"tokens": "bytes", "set": "str"}) as writer:
            for _ in range(SEQUENCES // domains):
                tokens = rng.integers(0, 32_000, SEQ_LEN, dtype=np.uint16)
                writer.write({"tokens": tokens.tobytes(), "set": name})
    return names


def loader_pass(root: Path, names: list[str]) -> Callable[[], Any]:
    """Reads BATCHES batches of the mixture, shuffled."""
    config = LoaderConfig(DatasetConfig(local=str(root), max_seq_len=SEQ_LEN, shuffle=True))
    weights = [1 / len(names)] * len(names)
    loader = build_text_dataloader(config, BATCH, True, names, weights, vocab_size=32_000)
    return lambda: sum(1 for _ in itertools.islice(loader, BATCHES))


def bare_pass(root: Path, names: list[str]) -> Callable[[], Any]:
    """Reads as many sequences with mosaicml-streaming's reader alone, in random order."""
    shards = []
    for name in names:
        entries = json.loads((root / name / "index.json").read_text())["shards"]
        shards += [reader_from_json(str(root / name), None, entry) for entry in entries]
    places = [(shard, i) for shard in shards for i in range(len(shard))]
    order = np.random.default_rng(0).permutation(len(places))[: BATCH * BATCHES].tolist()
    return lambda: [shard[i] for shard, i in (places[at] for at in order)]


def measure_loading() -> dict[str, float]:
    """Tokens a second, and ratios of passes run side by side."""
    with tempfile.TemporaryDirectory() as folder:
        few, many = Path(folder, "7"), Path(folder, "70")
        names = {root: write_domains(root, int(root.name)) for root in (few, many)}
        passes = {
            "bare": bare_pass(few, names[few]),
            "7": loader_pass(few, names[few]),
            "70": loader_pass(many, names[many]),
        }
        seconds = paired_seconds(passes, ROUNDS)
    tokens = BATCH * BATCHES * SEQ_LEN
    rates = {f"million tokens/s, {name}": tokens / statistics.median(s) / 1e6 for name, s in seconds.items()}
    return rates | {
        "loading rate / bare MDS read": 1 / median_ratio(seconds, "7", "bare"),
        "rate with 70 domains / with 7": 1 / median_ratio(seconds, "70", "7"),
    }


def measure_mixture() -> dict[str, float]:
    """Planning, and what a run of STEPS steps with an update every UPDATE_EVERY leaves in a checkpoint."""
    names = [f"domain{i}" for i in range(7)]
    mixture = Mixture(names, [10**7 + i for i in range(7)], [1 / 7] * 7, seed=17)
    rng = np.random.default_rng(0)
    for step in range(UPDATE_EVERY, STEPS, UPDATE_EVERY):
        mixture.set_weights(step * GLOBAL_BATCH, rng.dirichlet(np.ones(7)).tolist())
    cursor = Cursor(STEPS * GLOBAL_BATCH, np.full(7, STEPS * GLOBAL_BATCH // 7))
    planning = []
    for _ in range(200):
        start = time.perf_counter()
        mixture.plan(cursor, GLOBAL_BATCH)
        planning.append(time.perf_counter() - start)
    state = json.dumps(mixture.state_dict(cursor))
    start = time.perf_counter()
    resumed = Mixture(names, [10**7 + i for i in range(7)], [1 / 7] * 7, seed=17)
    resumed.plan(resumed.load_state_dict(json.loads(state)), GLOBAL_BATCH)
    return {
        "milliseconds to plan a batch of 256": statistics.median(planning) * 1e3,
        "state in bytes after 48,000 steps": len(state),
        "seconds to resume at step 48,000": time.perf_counter() - start,
    }


def main() -> None:
    cli.parser("benchmarks.data_loading", __doc__).parse_args()
    values = measure_loading() | measure_mixture()
    config = {"sequence": SEQ_LEN, "batch": BATCH, "batches": BATCHES, "rounds": ROUNDS, "dtype": "uint16"}
    write_result("data_loading", config, values)


if __name__ == "__main__":
    main()
