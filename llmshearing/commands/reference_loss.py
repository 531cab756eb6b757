"""Reference losses of dynamic batch loading: measured on a model, or extrapolated by a scaling law.

    llmshearing reference_loss measure MODEL --data DATA
    llmshearing reference_loss fit TABLE.yaml --parameters 1345423360

`measure` takes the losses of a model, such as the source, on the evaluation data that pruning will
use. `fit` takes a table of losses of models of one family by size, and computes what a model of the
target's size would reach. Both print the list that `callbacks.data_loading.target_loss` wants.

Example:

    llmshearing reference_loss measure models/llama2-7b.pt --data data/mds
"""

import argparse
import io
import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from scipy.optimize import OptimizeWarning, curve_fit

from llmshearing import cli
from llmshearing.checkpoints.opening import read_checkpoint
from llmshearing.commands.equality import load_ours
from llmshearing.config import DatasetConfig, LoaderConfig
from llmshearing.datasets.load_text_dataloader import build_text_dataloader
from llmshearing.datasets.manifest import read_manifest
from llmshearing.progress import bar

_START_EXPONENT = 0.336  # the Chinchilla paper's, where the released notebook starts
_MAX_EVALUATIONS = 20_000
_UNKNOWNS = 3
_MEASURE = """Measure the mean loss of a model on each domain of the evaluation data, in nats a token.

Example:

    llmshearing reference_loss measure models/llama2-7b.pt --data data/mds
"""
_FIT = """Compute what a model of another size would reach, by a scaling law through the losses of a table.

Example:

    llmshearing reference_loss fit configs/llama2/reference_losses.yaml --parameters 1.3B
"""


def scaling_law(parameters: NDArray[np.float64] | float, a: float, b: float, c: float) -> Any:
    """Loss of a model of N parameters, embeddings included: a N^-b + c (Sheared-LLaMA, appendix B)."""
    return a * parameters**-b + c


def fit_scaling_law(parameters: Sequence[float], losses: Sequence[float]) -> tuple[float, float, float]:
    """a, b, c of `scaling_law` through the losses [n] of models of these sizes [n], by least squares.

    Three sizes are met exactly, so the fit says nothing of its own error.

    Raises:
        ValueError: for fewer than three sizes, for losses that rise with size, and where no curve is found.
    """
    if len(set(parameters)) < _UNKNOWNS or len(parameters) != len(losses):
        raise ValueError(
            f"{len(losses)} losses for {len(set(parameters))} different sizes: expected one loss for each "
            f"of at least {_UNKNOWNS}"
        )
    _check_falling(parameters, losses)
    x, y = np.asarray(parameters, np.float64), np.asarray(losses, np.float64)
    unit = x.min()  # of the sizes in the fit: with those themselves it goes astray
    start = (np.ptp(y), _START_EXPONENT, y.min())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OptimizeWarning)  # no error bars from as many points as unknowns
        try:
            (a, b, c), _ = curve_fit(scaling_law, x / unit, y, p0=start, maxfev=_MAX_EVALUATIONS)
        except RuntimeError as error:
            raise ValueError(f"no curve a N^-b + c through losses {list(losses)}: {error}") from None
    rest = y - scaling_law(x / unit, a, b, c)
    if rest.std() > y.std() / 4:
        raise ValueError(
            f"no curve a N^-b + c through losses {list(losses)}: the nearest one misses them by up to "
            f"{abs(rest).max():.3g}"
        )
    return float(a * unit**b), float(b), float(c)


def _check_falling(parameters: Sequence[float], losses: Sequence[float]) -> None:
    """Check that losses fall with size, as every scaling law has them.

    Raises:
        ValueError: when a larger model has the larger loss.
    """
    points = sorted(zip(parameters, losses, strict=True), key=lambda point: point[0])
    for (size, loss), (larger, higher) in itertools.pairwise(points):
        if higher > loss and larger > size:
            raise ValueError(
                f"the loss rises from {loss} at {size:g} parameters to {higher} at {larger:g}: expected "
                "losses that fall with size; measure them again, or leave one of the sizes out"
            )


def read_table(path: Path) -> tuple[list[float], dict[str, list[float]]]:
    """Sizes and the losses at them of each domain, from a YAML file.

    Raises:
        ValueError: when the file has another form.
    """
    table = _load(path)
    if not isinstance(table, Mapping) or set(table) != {"parameters", "losses"}:
        raise ValueError(f"{path}: expected the keys parameters: [...] and losses: {{domain: [...]}}")
    parameters, losses = table["parameters"], table["losses"]
    if not isinstance(losses, dict) or not losses or not all(isinstance(name, str) for name in losses):
        raise ValueError(
            f"{path}: losses is {losses!r}: expected a list for each domain, such as cc: [1.75, 1.67]"
        )
    for name, values in {"parameters": parameters, **losses}.items():
        if not isinstance(values, list) or not all(type(v) in (int, float) and v > 0 for v in values):
            raise ValueError(f"{path}: {name} is {values!r}: expected a list of numbers above 0")
        if math.inf in values:
            raise ValueError(f"{path}: {name} has .inf: expected finite numbers")
    return parameters, losses


def _load(path: Path) -> Any:
    """What a YAML file holds; by OmegaConf, since YAML 1.1 reads 7e9 as a text."""
    try:
        text = io.StringIO(path.read_text(encoding="utf-8"))
        with suppress(OSError):  # a number alone, which is none of the forms that are expected
            return OmegaConf.to_container(OmegaConf.load(text))
        return None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not plain YAML: {error}") from error
    except OmegaConfBaseException as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]}") from error


@torch.no_grad()
def measure(
    model_path: str,
    data: Path,
    set_names: Sequence[str] | None,
    split: str,
    seq_length: int | None,
    batch_size: int,
) -> dict[str, float]:
    """Mean loss in nats a token of a model on each domain of evaluation data.

    Args:
        model_path: HF folder or Composer checkpoint.
        data: prepared data.
        set_names: domains; None: those of the data's manifest.
        split: folder of the evaluation data.
        seq_length: of data without a manifest; None: the manifest's.
        batch_size: sequences at a time.

    Raises:
        ValueError: when neither the manifest nor an argument gives domains and length, or the two differ.
    """
    manifest = read_manifest(data)
    names = list(set_names or (manifest.domains if manifest is not None else ()))
    length = manifest.seq_length if manifest is not None else seq_length
    if not names or length is None:
        raise ValueError(f"{data} has no manifest: give --set_names and --seq_length")
    if seq_length not in (None, length):
        raise ValueError(
            f"--seq_length is {seq_length}, but the sequences of {data} have {length} tokens: leave it out"
        )
    checkpoint = read_checkpoint(model_path)
    if checkpoint.section:
        raise ValueError(
            f"{model_path} is the checkpoint of a pruning run: measure the source model, or the one that "
            "`llmshearing prune` makes of it"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_ours(checkpoint).to(device)
    model.set_names, model.return_logits = names, False
    config = LoaderConfig(DatasetConfig(local=str(data), split=split, max_seq_len=length))
    loader = build_text_dataloader(
        config, batch_size, set_names=names, vocab_size=model.model.arch.vocab_size
    )
    sums = torch.zeros(len(names), 2, dtype=torch.float64, device=device)
    for batch in bar("measuring", loader, unit="batch"):
        batch = {key: value.to(device) for key, value in batch.items()}
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            sums += model.eval_forward(batch)["domain_sums"]
    if missing := [name for name, tokens in zip(names, sums[:, 1].tolist(), strict=True) if not tokens]:
        raise ValueError(
            f"{data / split} has no sequences of {', '.join(missing)}: prepare it with every domain"
        )
    return dict(zip(names, (sums[:, 0] / sums[:, 1]).tolist(), strict=True))


def say_list(losses: Mapping[str, float]) -> None:
    """Print losses as the section of the configuration that takes them."""
    cli.say(f"set_names: [{', '.join(losses)}]")
    cli.say(f"target_loss: [{', '.join(f'{loss:.4f}' for loss in losses.values())}]")


def say_fit(table: Path, sizes: Sequence[int]) -> None:
    """Print the fitted curves, and the losses they give at these sizes."""
    parameters, losses = read_table(table)
    curves = {}
    for domain, values in losses.items():
        try:
            curves[domain] = fit_scaling_law(parameters, values)
        except ValueError as error:
            raise ValueError(f"{table}: {domain}: {error}") from None
    for domain, (a, b, c) in curves.items():
        cli.say(f"# {domain}: {a:.4g} N^-{b:.4f} + {c:.4f}")
    for size in sizes:
        cli.say(f"# {size:,} parameters")
        say_list({domain: float(scaling_law(size, *curve)) for domain, curve in curves.items()})


def parse_size(text: str) -> int:
    """A number of parameters: 1345423360, 1.3B, 1e9."""
    size = cli.quantity(text)
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected at least 1 parameter")
    return size


def parse_count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = cli.parser("llmshearing.utils.reference_loss", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser(
        "measure",
        help="losses of a model on the evaluation data",
        description=_MEASURE,
        epilog=parser.epilog,
        formatter_class=parser.formatter_class,
    )
    measuring.add_argument("model", help="HF folder or Composer checkpoint")
    measuring.add_argument("--data", type=Path, required=True, help="folder of the prepared data")
    measuring.add_argument("--set_names", nargs="+", help="domains, in the order wanted (the manifest's)")
    measuring.add_argument("--split", default="eval_merge", help="folder below it (eval_merge)")
    measuring.add_argument(
        "--seq_length", type=parse_count, help="tokens of a sequence, for data without a manifest"
    )
    measuring.add_argument("--batch_size", type=parse_count, default=8, help="sequences at a time (8)")
    fitting = commands.add_parser(
        "fit",
        help="losses at another size, by a scaling law",
        description=_FIT,
        epilog=parser.epilog,
        formatter_class=parser.formatter_class,
    )
    fitting.add_argument(
        "table", type=Path, help="YAML of sizes and losses; configs/llama2/reference_losses.yaml"
    )
    fitting.add_argument(
        "--parameters",
        type=parse_size,
        nargs="+",
        required=True,
        help="sizes to extrapolate to: 1345423360, 1.3B",
    )
    return parser.parse_args()


def main() -> None:
    """The command."""
    args = parse_arguments()
    if args.command == "fit":
        say_fit(args.table, args.parameters)
    else:
        say_list(measure(args.model, args.data, args.set_names, args.split, args.seq_length, args.batch_size))
