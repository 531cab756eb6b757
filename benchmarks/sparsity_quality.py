"""Loss of a model under 2:4 masks, by every way to find them, on held-out text.

    python -m benchmarks.sparsity_quality [SOURCE DATA OUT] [--steps N] [--seeds N ...] [--name NAME]
        [--jobs N] [--change k=v ...]

SOURCE is a trained checkpoint, DATA its prepared data with the splits for_ft and eval_merge, OUT a folder
for the models; default: those of the quickstart, and runs/sparsity. One-shot masks are calibrated on for_ft,
learned ones trained on it; all are measured on eval_merge. Learned masks start from SparseGPT's, from those
by magnitude and from none, with each seed; what follows `--change` changes these runs.

Writes `benchmarks/results/sparsity_quality.json`, or NAME.json there.

Example:

    python -m benchmarks.sparsity_quality runs/quickstart/source.pt runs/quickstart/mds runs/sparsity \\
      --steps 200 --seeds 17 18 19
"""

import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from benchmarks.common import positive, write_result
from llmshearing import cli
from llmshearing.commands.oneshot import oneshot
from llmshearing.commands.prune import prune_and_save_model
from llmshearing.commands.reference_loss import measure
from llmshearing.config import Config, build
from llmshearing.datasets.manifest import read_manifest
from llmshearing.training import train

ONE_SHOT: dict[str, dict[str, Any]] = {
    "magnitude": {"method": "magnitude"},
    "wanda": {"method": "wanda"},
    "sparsegpt, mask alone": {"method": "sparsegpt"},
    "sparsegpt, dense inputs": {"method": "sparsegpt", "dense_inputs": True},
    "sparsegpt, updated": {"method": "sparsegpt", "update": True},
}
PLACES = {"source": "runs/quickstart/source.pt", "data": "runs/quickstart/mds", "out": "runs/sparsity"}
PRIORS = {"SparseGPT": "sparsegpt--dense-inputs.masks.npz", "magnitude": "magnitude", "none": None}


def one_shot_loss(name: str, source: Path, data: Path, out: Path, samples: int) -> float:
    """Loss of the source under the masks of a one-shot method."""
    made = out / f"{name.replace(',', '-').replace(' ', '-')}.pt"
    options = ONE_SHOT[name]
    reads = options["method"] != "magnitude"
    calibration = {"data": str(data / "for_ft"), "samples": samples} if reads else {}
    oneshot(source, made, pattern="2:4", **options, **calibration)
    return loss(made, data)


def learned_loss(
    prior: str | None, seed: int, source: Path, data: Path, out: Path, steps: int, changes: Sequence[str]
) -> float:
    """Loss of the source under masks learned for `steps` steps."""
    manifest = read_manifest(data)
    assert manifest is not None
    length, domains = manifest.seq_length, list(manifest.domains)
    loader = {"dataset": {"local": str(data), "shuffle": True, "max_seq_len": length}}
    folder = out / f"learned-{Path(prior or 'none').name.split('.')[0]}-{seed}"
    values = {
        "max_seq_len": length,
        "seed": seed,
        "model": {"path": str(source), "maskllm": {"prior": prior}},
        "train_loader": {"dataset": {**loader["dataset"], "split": "for_ft"}},
        "callbacks": {
            "data_loading": {"set_names": domains, "proportion": [1 / len(domains)] * len(domains)}
        },
        "optimizer": {"name": "adamw", "lr": 5e-4, "betas": [0.9, 0.95], "eps": 1e-5, "weight_decay": 0.1},
        "scheduler": {"t_warmup": "0ba", "alpha_f": 0.1},
        "algorithms": {"gradient_clipping": {"clipping_type": "norm", "clipping_threshold": 1.0}},
        "max_duration": f"{steps}ba",
        "eval_interval": "0ba",
        "global_train_batch_size": 16,
        "device_train_microbatch_size": 16,
        "precision": "fp32",
        "progress_bar": False,
        "save_folder": str(folder),
        "save_interval": f"{steps}ba",
        "save_overwrite": True,
    }
    merged = OmegaConf.merge(OmegaConf.create(values), OmegaConf.from_dotlist(list(changes)))
    train(build(Config, merged))
    sparse = folder.with_suffix(".pt")
    prune_and_save_model(folder / "latest-rank0.pt", sparse)
    return loss(sparse, data)


def loss(model: Path, data: Path) -> float:
    """Mean over domains of the loss on held-out text, in nats a token."""
    return statistics.mean(measure(str(model), data, None, "eval_merge", None, 16).values())


def main() -> None:
    parser = cli.parser("benchmarks.sparsity_quality", __doc__)
    for name, default in PLACES.items():
        parser.add_argument(name, metavar=name.upper(), type=Path, nargs="?", default=Path(default))
    parser.add_argument("--steps", type=positive, default=200, help="steps of learning (200)")
    parser.add_argument("--samples", type=positive, default=128, help="sequences to calibrate on (128)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19], help="of learning (17 18 19)")
    parser.add_argument("--name", default="sparsity_quality", help="of the result (sparsity_quality)")
    parser.add_argument("--jobs", type=positive, default=1, help="ways of finding masks at a time (1)")
    parser.add_argument("--change", metavar="key=value", nargs="+", default=[], help="settings of learning")
    arguments = parser.parse_args()
    source, data, out = arguments.source, arguments.data, arguments.out
    out.mkdir(parents=True, exist_ok=True)
    losses: dict[str, Any] = {"dense": loss(source, data)}
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
        found = pool.map(
            partial(one_shot_loss, source=source, data=data, out=out, samples=arguments.samples), ONE_SHOT
        )
        for name, value in zip(ONE_SHOT, found, strict=True):
            losses[name] = value
            sys.stdout.write(f"{name:36}{value:.4f}\n")
        learn = partial(
            learned_loss, source=source, data=data, out=out, steps=arguments.steps, changes=arguments.change
        )
        places = {n: str(out / p) if p and p.endswith(".npz") else p for n, p in PRIORS.items()}
        runs = {name: [pool.submit(learn, p, seed) for seed in arguments.seeds] for name, p in places.items()}
        for name, of_seeds in runs.items():
            losses[f"learned, prior {name}"] = [run.result() for run in of_seeds]
            sys.stdout.write(f"learned, prior {name:20} {losses[f'learned, prior {name}']}\n")
    settings = {key: str(value) for key, value in vars(arguments).items()}
    write_result(arguments.name, settings | {"pattern": "2:4"}, losses)


if __name__ == "__main__":
    cli.run(main)
