"""Loss of a model under 2:4 masks, by every way to find them, on held-out text.

    python -m benchmarks.sparsity_quality [SOURCE DATA OUT] [--steps N] [--seeds N ...] [--change k=v ...]

SOURCE is a trained checkpoint, DATA its prepared data with the splits for_ft and eval_merge, OUT a folder
for the models; default: those of the quickstart, and runs/sparsity. One-shot masks are calibrated on for_ft,
learned ones trained on it; all are measured on eval_merge. Learned masks start from SparseGPT's, from those
by magnitude and from none, with each seed; what follows `--change` changes these runs.

Writes `benchmarks/results/sparsity_quality.json`.

Example:

    python -m benchmarks.sparsity_quality runs/quickstart/source.pt runs/quickstart/mds runs/sparsity \\
      --steps 200 --seeds 17 18 19
"""

import statistics
import sys
from collections.abc import Sequence
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


def one_shot(source: Path, data: Path, out: Path, samples: int) -> dict[str, Path]:
    """Sparse checkpoints of the source by every one-shot method."""
    made = {}
    for name, options in ONE_SHOT.items():
        made[name] = out / f"{name.replace(',', '-').replace(' ', '-')}.pt"
        reads = options["method"] != "magnitude"
        calibration = {"data": str(data), "samples": samples} if reads else {}
        oneshot(source, made[name], pattern="2:4", **options, **calibration)
    return made


def learned(
    source: Path, data: Path, out: Path, prior: str | None, steps: int, seed: int, changes: Sequence[str]
) -> Path:
    """The sparse checkpoint of the source under masks learned for `steps` steps."""
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
    return sparse


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
    parser.add_argument("--change", metavar="key=value", nargs="+", default=[], help="settings of learning")
    arguments = parser.parse_args()
    source, data, out = arguments.source, arguments.data, arguments.out
    out.mkdir(parents=True, exist_ok=True)
    losses: dict[str, Any] = {"dense": loss(source, data)}
    calibration = data / "for_ft"
    for name, model in one_shot(source, calibration, out, arguments.samples).items():
        losses[name] = loss(model, data)
        sys.stdout.write(f"{name:36}{losses[name]:.4f}\n")
    for name, prior in PRIORS.items():
        place = str(out / prior) if prior and prior.endswith(".npz") else prior
        found = [
            loss(learned(source, data, out, place, arguments.steps, seed, arguments.change), data)
            for seed in arguments.seeds
        ]
        losses[f"learned, prior {name}"] = found
        sys.stdout.write(f"learned, prior {name:20} {found}\n")
    settings = {key: str(value) for key, value in vars(arguments).items()}
    write_result("sparsity_quality", settings | {"pattern": "2:4"}, losses)


if __name__ == "__main__":
    cli.run(main)
