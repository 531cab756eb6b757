"""Conversion and pruning of a model of 1.3 billion random bf16 parameters: time beside copying, and memory.

Every run is a process of its own and alternates with a plain copy. Times leave out the imports. Counted as
memory is what a process holds at its peak beyond what it held after imports, pages of mapped files
included, over the bytes of the source.

Takes no arguments. Writes `benchmarks/results/conversion.json`. Its models, about 11 GB, lie in a folder that
is removed at the end: in BENCHMARK_FOLDER where that is set, else where the system keeps what is temporary.

Example:

    BENCHMARK_FOLDER=/scratch python -m benchmarks.conversion
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import write_result
from benchmarks.memory import resident
from llmshearing import cli
from llmshearing.checkpoints.opening import read_checkpoint
from llmshearing.checkpoints.writing import write_checkpoint
from llmshearing.commands.convert import export, save_composer_to_hf, save_hf_to_composer
from llmshearing.commands.prune import prune_and_save_model
from llmshearing.config import L0Config, ModelConfig, TargetConfig
from llmshearing.pruning.l0 import L0Module
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.hf_config import architecture_to_hf
from llmshearing.shapes.key_map import PREFIX
from llmshearing.shapes.model_section import complete
from llmshearing.shapes.units import weight_shapes

SOURCE = {"d_model": 2048, "n_heads": 16, "n_layers": 24, "intermediate_size": 5504}
TARGET = {"d_model": 1024, "n_heads": 8, "n_layers": 24, "intermediate_size": 2816}
ROUNDS = 5
CHUNK = 2**24
ONE_RUN = """
import json, pathlib, sys
from benchmarks.conversion import one_run
print("\\n" + json.dumps(one_run(sys.argv[1], pathlib.Path(sys.argv[2]))))
"""


def prepare(folder: Path) -> None:
    """Write `hf`, a random model; `c.pt`, the same for Composer; and `masked.pt`, the same with masks."""
    torch.manual_seed(0)
    size = {"n_kv_heads": SOURCE["n_heads"], "head_dim": 128, "vocab_size": 32000, "max_seq_len": 4096}
    arch = Architecture(**SOURCE, **size)
    weights = {PREFIX + n: torch.empty(shape, dtype=torch.bfloat16) for n, shape in weight_shapes(arch)}
    for weight in weights.values():
        weight.normal_()
    config = architecture_to_hf(arch)
    export(weights, arch, config, {}, folder / "hf")
    save_hf_to_composer(folder / "hf", folder / "c.pt")
    cfg = ModelConfig(l0_module=L0Config(target_model=TargetConfig(**TARGET)))
    module = L0Module(complete(cfg, arch, "benchmark"))
    for mask in module.masks.values():
        torch.nn.init.uniform_(mask.z_loga, -4.6, 4.6)  # type: ignore[arg-type]
    masks = {f"model.l0_module.{name}": value for name, value in module.state_dict().items()}
    record = read_checkpoint(folder / "c.pt").record
    write_checkpoint(folder / "masked.pt", weights | masks, record or {})


def work(name: str, folder: Path) -> None:
    """One run of what is measured."""
    out = folder / f"out-{name}"
    if name == "HF -> Composer":
        save_hf_to_composer(folder / "hf", out)
    elif name == "Composer -> HF":
        save_composer_to_hf(folder / "c.pt", out)
    elif name == "prune_and_save":
        prune_and_save_model(folder / "masked.pt", out, target=TARGET)
    elif name == "copy":
        shutil.copyfile(folder / "c.pt", out)
    else:
        copy_bytes(folder / "c.pt", out)


def copy_bytes(source: Path, out: Path) -> None:
    """Read and write `source` piece by piece, as a program does that looks at what it copies."""
    with source.open("rb") as read, out.open("wb") as write:
        shutil.copyfileobj(read, write, CHUNK)


def one_run(name: str, folder: Path) -> tuple[float, int]:
    """Seconds, and bytes held at the peak beyond the imports, of one run in this process."""
    before, start = resident(), time.perf_counter()
    work(name, folder)
    seconds = time.perf_counter() - start
    return seconds, resident(peak=True) - before


def measured(name: str, folder: Path) -> tuple[float, int]:
    """`one_run` in a fresh process, whose output is removed."""
    os.sync()  # what an earlier run left to be written would slow this one down
    run = [sys.executable, "-c", ONE_RUN, name, str(folder)]
    seconds, peak = json.loads(
        subprocess.run(run, check=True, capture_output=True, text=True).stdout.split("\n")[-2]
    )
    out = folder / f"out-{name}"
    shutil.rmtree(out) if out.is_dir() else out.unlink()
    return seconds, peak


def measure(rounds: int = ROUNDS) -> dict[str, Any]:
    """Median ratios of time to that of a copy beside it, and of memory to the source's bytes."""
    pairs = {"HF -> Composer": "copy", "Composer -> HF": "copy", "prune_and_save": "read and write"}
    values: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCHMARK_FOLDER")) as name:
        folder = Path(name)
        prepare(folder)
        size = (folder / "c.pt").stat().st_size
        for task, base in pairs.items():
            runs = [(measured(task, folder), measured(base, folder)) for _ in range(rounds)]
            values[f"{task} / {base}, time"] = statistics.median(a[0] / b[0] for a, b in runs)
            values[f"{task}, memory / source"] = max(a[1] for a, _ in runs) / size
            values[f"{task}, seconds"] = [round(a[0], 3) for a, _ in runs]
            values[f"{base} beside it, seconds"] = [round(b[0], 3) for _, b in runs]
    return values


def main() -> None:
    cli.parser("benchmarks.conversion", __doc__).parse_args()
    values = measure()
    write_result("conversion", {"source": SOURCE, "target": TARGET, "rounds": ROUNDS}, values)
    for name, value in values.items():
        sys.stdout.write(f"{name}: {value}\n")


if __name__ == "__main__":
    main()
