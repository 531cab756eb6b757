"""What scores cost: a pass that collects them beside the same pass alone, layers of LLaMA 1.3B's shape.

Each pass is timed in turn with its plain counterpart; ratios are medians of pairs. On a GPU it also compares
the memory that passes take beyond the model.

Writes `benchmarks/results/scoring.json`.

Example:

    python -m benchmarks.scoring --layers 24
"""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.common import median_ratio, paired_seconds, positive, write_result
from llmshearing import cli
from llmshearing.config import as_model_config
from llmshearing.models.calibration import activation_scores, batches, taylor_scores
from llmshearing.models.decoder import Decoder
from llmshearing.shapes.units import Gates

SIZES = {"d_model": 2048, "n_heads": 16, "intermediate_size": 5504, "vocab_size": 32000}


def main() -> None:
    """Measure and write the result."""
    parser = cli.parser("benchmarks.scoring", __doc__)
    parser.add_argument("--layers", type=positive, default=2, help="of the model (2; LLaMA 1.3B has 24)")
    parser.add_argument("--samples", type=positive, default=4, help="of calibration (4)")
    parser.add_argument("--length", type=positive, default=512, help="tokens of each (512)")
    parser.add_argument("--rounds", type=positive, default=5, help="pairs (5)")
    args = parser.parse_args()
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    config = as_model_config({**SIZES, "n_layers": args.layers, "max_seq_len": args.length})
    decoder = Decoder(config).to(device, dtype).eval()
    ids_NS = torch.randint(0, SIZES["vocab_size"], (args.samples, args.length))

    def forward() -> None:
        with torch.no_grad():
            for ids in batches(ids_NS):
                decoder.hidden_states(ids.to(device), Gates())
        _finish(device)

    def backward() -> None:
        for ids in batches(ids_NS, tokens=1):
            ids = ids.to(device)
            decoder(ids, labels=ids, logits=False)["ce_loss"].backward()
            decoder.zero_grad()
        _finish(device)

    passes: dict[str, Callable[[], Any]] = {
        "forward": forward,
        "activation": lambda: activation_scores(decoder, ids_NS),
        "forward and backward": backward,
        "taylor": lambda: taylor_scores(decoder, ids_NS),
    }
    seconds = paired_seconds(passes, args.rounds)
    values: dict[str, Any] = {
        "activation / forward": median_ratio(seconds, "activation", "forward"),
        "taylor / forward and backward": median_ratio(seconds, "taylor", "forward and backward"),
    }
    if device == "cuda":
        values["bytes beyond the model"] = {name: _peak(run) for name, run in passes.items()}
    for name, value in values.items():
        cli.say(f"{name}: {value}")
    write_result("scoring", {**SIZES, **vars(args)}, values | {"seconds": seconds})


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _peak(run: Callable[[], Any]) -> int:
    """Bytes that a pass takes on the GPU at its peak, beyond what is there before it."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


if __name__ == "__main__":
    main()
