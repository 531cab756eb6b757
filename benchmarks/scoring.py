"""What scores cost: a pass that collects them beside the same pass alone, layers of LLaMA 1.3B's shape.

Each pass is timed in turn with its plain counterpart; ratios are medians of pairs. Peaks of memory are
compared, too, each of a process of its own.

Writes `benchmarks/results/scoring.json`.

Example:

    python -m benchmarks.scoring --layers 24
"""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.common import median_ratio, paired_seconds, positive, write_result
from benchmarks.memory import fresh, resident
from llmshearing import cli
from llmshearing.config import as_model_config
from llmshearing.models.calibration import activation_scores, batches, taylor_scores
from llmshearing.models.decoder import Decoder
from llmshearing.shapes.units import Gates

SIZES = {"d_model": 2048, "n_heads": 16, "intermediate_size": 5504, "vocab_size": 32000}
PAIRS = {"activation": "forward", "taylor": "forward and backward"}


def passes(layers: int, samples: int, length: int) -> dict[str, Callable[[], Any]]:
    """The two passes that score, and their plain counterparts, of one model."""
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    config = as_model_config({**SIZES, "n_layers": layers, "max_seq_len": length})
    decoder = Decoder(config).to(device, dtype).eval()
    ids_NS = torch.randint(0, SIZES["vocab_size"], (samples, length))

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

    return {
        "forward": forward,
        "activation": lambda: activation_scores(decoder, ids_NS),
        "forward and backward": backward,
        "taylor": lambda: taylor_scores(decoder, ids_NS),
    }


def peak_bytes(name: str, layers: int, samples: int, length: int) -> int:
    """Bytes of memory at the peak of a pass, the model among them; on a GPU, of its memory."""
    run = passes(layers, samples, length)[name]
    run()
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resident(peak=True)


def main() -> None:
    """Measure and write the result."""
    parser = cli.parser("benchmarks.scoring", __doc__)
    parser.add_argument("--layers", type=positive, default=2, help="of the model (2; LLaMA 1.3B has 24)")
    parser.add_argument("--samples", type=positive, default=1, help="of calibration (1)")
    parser.add_argument("--length", type=positive, default=2048, help="tokens of each (2048)")
    parser.add_argument("--rounds", type=positive, default=5, help="pairs (5)")
    args = parser.parse_args()
    shape = (args.layers, args.samples, args.length)
    seconds = paired_seconds(passes(*shape), args.rounds)
    values: dict[str, Any] = {
        f"{scored} / {plain}": median_ratio(seconds, scored, plain) for scored, plain in PAIRS.items()
    }
    for scored, plain in PAIRS.items():
        values[f"bytes of {scored} beyond {plain}"] = fresh(peak_bytes, scored, *shape) - fresh(
            peak_bytes, plain, *shape
        )
    for name, value in values.items():
        cli.say(f"{name}: {value}")
    write_result("scoring", {**SIZES, **vars(args)}, values | {"seconds": seconds})


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
