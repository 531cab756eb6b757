"""The speed of 2:4 sparse weights on one GPU, by torch's semi-structured kernels.

    python -m benchmarks.sparse_speed [--export FOLDER] [--tiny] [--rounds N]

Without an export: the linear layers of LLaMA-2-7B with random weights, pruned to 2:4, in bf16, for several
numbers of tokens. With one: an HF folder that `llmshearing prune --hf` or `llmshearing oneshot --pattern 2:4`
wrote, whole passes over tokens before and after its block linears are compressed, and how far the logits
move. Writes `benchmarks/results/sparse_speed.json`; with `--tiny`, which needs no GPU and compresses nothing
without one, nothing.

Example:

    python -m benchmarks.sparse_speed --export models/sparse-7b
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import positive, write_result
from llmshearing import cli
from llmshearing.pruning.nm_scores import magnitude_scores
from llmshearing.pruning.patterns import Pattern, top_mask

TWO_FOUR = Pattern(2, 4)
LAYERS = {"attention": (4096, 4096), "up": (11008, 4096), "down": (4096, 11008)}
TINY_LAYERS = {"attention": (64, 64), "up": (128, 64), "down": (64, 128)}
TOKENS = (1, 16, 256, 2048, 8192)
ROUNDS = 20


def is_sparse(weight: Tensor) -> bool:
    """Whether at least 2 of every 4 neighbouring weights of a row are 0."""
    if weight.shape[1] % 4:
        return False
    return bool(((weight == 0).unflatten(-1, (-1, 4)).sum(-1) >= 2).all())


def compressed(weight: Tensor) -> Tensor:
    """A 2:4 sparse weight in the form that the kernels read: half the numbers, and two bits for each.

    Raises:
        RuntimeError: without CUDA, or for a shape or type that the kernels do not take.
    """
    return torch.sparse.to_sparse_semi_structured(weight)


def compress_model(model: nn.Module) -> tuple[int, int]:
    """Compress every sparse linear layer of a model, in place; how many were compressed, and how many were
    not sparse."""
    found = left = 0
    for module in model.modules():
        if isinstance(module, nn.Linear):
            if is_sparse(module.weight):
                module.weight = nn.Parameter(compressed(module.weight.detach()), requires_grad=False)
                found += 1
            else:
                left += 1
    return found, left


def seconds(function: Callable[[], Any], device: torch.device, rounds: int) -> float:
    """Median time of a call, the device waited for, after three calls to warm up."""
    times = []
    for _ in range(rounds + 3):
        _wait(device)
        start = time.perf_counter()
        function()
        _wait(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:])


@torch.no_grad()
def measure_layers(
    layers: dict[str, tuple[int, int]], tokens: tuple[int, ...], device: torch.device, rounds: int
) -> dict[str, Any]:
    """Seconds of a dense and of a compressed layer, and the largest difference of their outputs."""
    values: dict[str, Any] = {}
    for name, (rows, columns) in layers.items():
        weight = torch.randn(rows, columns, device=device, dtype=torch.bfloat16)
        weight = weight.masked_fill(~top_mask(magnitude_scores(weight), TWO_FOUR), 0)
        sparse = compressed(weight) if device.type == "cuda" else weight
        for count in tokens:
            x = torch.randn(count, columns, device=device, dtype=torch.bfloat16)
            dense = seconds(lambda x=x, weight=weight: F.linear(x, weight), device, rounds)
            fast = seconds(lambda x=x, sparse=sparse: F.linear(x, sparse), device, rounds)
            gap = (F.linear(x, weight).float() - F.linear(x, sparse).float()).abs().max()
            values[f"{name} {rows}x{columns}, {count:,} tokens"] = {
                "dense / sparse": dense / fast,
                "dense, seconds": dense,
                "sparse, seconds": fast,
                "largest difference": float(gap),
            }
    return values


@torch.no_grad()
def measure_export(folder: str, tokens: tuple[int, ...], device: torch.device, rounds: int) -> dict[str, Any]:
    """Seconds of a pass of a sparse export before and after compression, and how far its logits move."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.bfloat16)
    model = model.to(device).eval()
    positions = min(max(tokens), model.config.max_position_embeddings)
    ids = torch.arange(positions, device=device)[None] % model.config.vocab_size
    lengths = [count for count in tokens if count <= positions]
    before = {count: seconds(lambda n=count: model(ids[:, :n]), device, rounds) for count in lengths}
    logits = model(ids).logits.float()
    held = _held(device)
    compressed_layers, dense_layers = compress_model(model) if device.type == "cuda" else _counted(model)
    values: dict[str, Any] = {
        "linear layers": {"2:4": compressed_layers, "dense": dense_layers},
        "largest change of a logit": float((model(ids).logits.float() - logits).abs().max()),
        "largest logit": float(logits.abs().max()),
        "memory after / before": _held(device) / held if held else None,
    }
    for count in lengths:
        after = seconds(lambda n=count: model(ids[:, :n]), device, rounds)
        values[f"pass over {count:,} tokens, dense / sparse"] = before[count] / after
    return values


def _counted(model: nn.Module) -> tuple[int, int]:
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    sparse = sum(is_sparse(module.weight) for module in linears)
    return sparse, len(linears) - sparse


def _held(device: torch.device) -> int:
    return torch.cuda.memory_allocated() if device.type == "cuda" else 0


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = cli.parser("benchmarks.sparse_speed", __doc__)
    parser.add_argument("--export", metavar="FOLDER", help="HF folder of a 2:4 sparse model")
    parser.add_argument("--tiny", action="store_true", help="tiny layers, for a try without a GPU")
    parser.add_argument("--rounds", type=positive, default=ROUNDS, help=f"calls to time ({ROUNDS})")
    arguments = parser.parse_args()
    if not (arguments.tiny or torch.cuda.is_available()):
        raise ValueError("there is no GPU here, and torch compresses 2:4 weights on CUDA only: try --tiny.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layers, tokens = (TINY_LAYERS, (1, 8)) if arguments.tiny else (LAYERS, TOKENS)
    values = measure_layers(layers, tokens, device, arguments.rounds)
    if arguments.export:
        values[f"export {arguments.export}"] = measure_export(
            arguments.export, tokens, device, arguments.rounds
        )
    if not arguments.tiny:
        write_result(
            "sparse_speed", {"layers": layers, "dtype": "bfloat16", "rounds": arguments.rounds}, values
        )
    for name, value in values.items():
        sys.stdout.write(f"{name:44}{value}\n")


if __name__ == "__main__":
    cli.run(main)
