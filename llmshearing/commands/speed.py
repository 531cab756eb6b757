"""How fast models read and write on this machine, side by side.

    llmshearing speed MODEL [MODEL ...]

MODEL is an HF folder, the name of a model on the hub, a checkpoint or a run's folder, as for
`llmshearing evaluate`. Measured in transformers: prefill and decoding in tokens a second, the time to the
first token, the weights and the peak of memory, each beside the first model's and beside what the shapes
promise. All models are held in memory together and measured in turn; medians of several rounds are given.
Results are kept in `speed.json`; written to a run's folder (--out), they appear in its report. For vLLM,
`vllm bench latency --model FOLDER` measures an export there.

Example:

    llmshearing speed models/source models/pruned --batch 1,8 --context 512
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from llmshearing import cli
from llmshearing.commands.hf_folder import as_hf_folder, find
from llmshearing.commands.reference_loss import parse_count
from llmshearing.evaluation import results
from llmshearing.evaluation.models import DTYPES, device, is_out_of_memory, load_model, usual_dtype
from llmshearing.evaluation.results import SPEED
from llmshearing.evaluation.speed import Setting, measure, promised
from llmshearing.files import check_writable


def main() -> None:
    """The command.

    Raises:
        ValueError: when the models do not fit in memory together.
        OSError: when a model is missing, or results cannot be written.
    """
    args = parse(sys.argv[1:])
    settings = [Setting(batch, context, args.new) for batch in args.batch for context in args.context]
    named = [find(name) for name in args.models]
    path = args.out / SPEED
    check_writable(args.out)
    kept = results.read(path)
    with ExitStack() as stack:
        folders = [stack.enter_context(as_hf_folder(each)) for each in named]
        try:
            models = [load_model(folder, args.dtype) for folder in folders]
            found = measure(models, settings, args.rounds)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise ValueError(
                "Out of memory: all models are held together. Name fewer, or give a smaller --batch or "
                "--context."
            ) from error
        shapes = {setting.name: promised(models, setting) for setting in settings}
        parameters = [model.num_parameters() for model in models]
    machine = describe_machine(args.dtype)
    entries = []
    for index, each in enumerate(named):
        entry = results.entry(kept, each.name, str(each.place), each.stamp)
        entry.parameters = parameters[index]
        for name, values in found[index].items():
            beside = shapes[name][index] if index else {}
            entry.speeds[name] = {**values, **beside, **machine}
        entries.append(entry)
        results.keep(path, entry)
    cli.say(results.as_text(*results.speed_rows(entries, [setting.name for setting in settings])))
    cli.say(f"{machine['machine']}; medians of {args.rounds}, {args.new} tokens decoded. Kept in {path}.")


def describe_machine(dtype: str) -> dict[str, Any]:
    """What the figures hold for."""
    name = torch.cuda.get_device_name() if device() == "cuda" else f"{torch.get_num_threads()} threads"
    return {
        "machine": f"{name}, {dtype}, torch {torch.__version__}",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _counts(text: str) -> list[int]:
    return [parse_count(word.strip()) for word in text.split(",")]


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = cli.parser("llmshearing.commands.speed", __doc__)
    parser.add_argument(
        "models", metavar="MODEL", nargs="+", help="HF folder, hub name, checkpoint or run folder"
    )
    parser.add_argument("--batch", type=_counts, default=[1], help="sequences at a time, several: 1,8 (1)")
    parser.add_argument(
        "--context", type=_counts, default=[512], help="tokens before, several: 512,2048 (512)"
    )
    parser.add_argument("--new", type=parse_count, default=32, help="tokens to decode (32)")
    parser.add_argument("--rounds", type=parse_count, default=5, help="rounds over all models (5)")
    parser.add_argument("--dtype", choices=DTYPES, default=usual_dtype(), help=f"({usual_dtype()} here)")
    parser.add_argument(
        "--out", type=Path, default=Path("evaluation"), help="folder of the results (evaluation)"
    )
    return parser.parse_args(words)


if __name__ == "__main__":
    cli.run(main)
