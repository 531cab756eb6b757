"""Shapes that a source can be pruned to within a budget: `llmshearing shapes`."""

import argparse
import copy
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from llmshearing import cli
from llmshearing.checkpoints.describing import describe
from llmshearing.checkpoints.opening import open_checkpoint
from llmshearing.shapes import counts
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.budgets import (
    Budget,
    Use,
    memory_bytes,
    nearest_shape,
    reading_flops,
    shapes_near,
    step_bytes,
)
from llmshearing.shapes.hf_config import architecture_to_hf

_WIDE = 2048  # hidden size from which widths are multiples of 128 rather than 64
_SIZES = ("d_model", "n_heads", "n_kv_heads", "n_layers", "intermediate_size")
_BYTES = {"kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_NOTES = """
GiB: weights and KV cache in bf16. Speeds against the source are estimates: of generating by the bytes that a
token reads, of reading a prompt by its operations.
Prefer width to depth, remove at most a third at once and more than a half in two rounds (guidelines of
NVIDIA Model-Optimizer, examples/pruning/README.md; 15B made a better 4B by way of 8B, arXiv 2407.14679). The
deepest shape comes first."""
_STEPS, _ROUNDS = 8, 5  # tokens that a measurement generates; measurements


def shapes(
    source: str | Path,
    *,
    parameters: str | None = None,
    memory: str | None = None,
    speed: str | None = None,
    context: int = 4096,
    batch: int = 1,
    multiple: int | None = None,
    measure: bool = False,
) -> None:
    """List shapes that a model can be pruned to within a budget, and the target_model section of the first.

    Give one budget. Each shape has equal layers, serves every KV head with equally many query heads, and is
    loaded by transformers 4 and 5.

    Example:

        llmshearing shapes models/Llama-2-7b-hf --parameters 1.3B

    Args:
        source: HF folder, GGUF file or Composer checkpoint.
        parameters: how many, embeddings included, such as 1.3B; to within 5 %.
        memory: of weights and KV cache in bf16, such as 8GiB; no more.
        speed: of generating, against the source, such as 2x; no less.
        context: tokens of a text, for KV cache and speed (4096).
        batch: texts at a time, likewise (1).
        multiple: of which d_model and intermediate_size are multiples (128; 64 below d_model 2048).
        measure: measure both speeds too, with random weights on this machine.

    Raises:
        ValueError: when no shape meets the budget; the nearest is named.
    """
    budgets = {"parameters": parameters, "memory": memory, "speed": speed}
    given = {name: text for name, text in budgets.items() if text is not None}
    if len(given) != 1:
        found = ", ".join(f"--{name}" for name in given) or "none"
        raise ValueError(f"Give one of --parameters, --memory and --speed; found {found}.")
    for name, number in (("context", context), ("batch", batch), ("multiple", multiple)):
        if number is not None and number < 1:
            raise ValueError(f"--{name} is {number}; expected 1 or more.")
    arch, config = describe(open_checkpoint(source))
    use = Use(context, batch)
    budget = _budget(arch, use, given)
    multiple = multiple or (128 if arch.d_model >= _WIDE else 64)
    found = shapes_near(arch, budget, multiple)
    if not found:
        raise ValueError(_nothing_meets(arch, use, budget, multiple, given))
    rows = [_row(shape, arch, use) for shape in (arch, *found)]
    header = [*_SIZES, "parameters", "GiB", "generates", "reads"]
    if measure:
        header += ["generates (measured)", "reads (measured)"]
        ratios = [(1.0, 1.0), *(measured(shape, arch, config, use) for shape in found)]
        rows = [[*row, *(f"{ratio:.2f}x" for ratio in pair)] for row, pair in zip(rows, ratios, strict=True)]
    cli.say("\n".join(_table(header, rows)))
    cli.say(_NOTES)
    if measure:
        cli.say("What was measured here, with random weights, may differ: a budget counts the estimates.")
    if (part := counts.parameters(found[0]) / counts.parameters(arch)) < 2 / 3:
        advice = (
            "prune in two rounds, with continued pre-training in between"
            if part < 1 / 2
            else "more than a third is removed at once"
        )
        cli.say(f"The first shape has {part:.0%} of the source's parameters: {advice}.")
    cli.say("\n".join(["\ntarget_model:", *(f"  {name}: {getattr(found[0], name)}" for name in _SIZES)]))


def _budget(source: Architecture, use: Use, given: Mapping[str, str]) -> Budget:
    """The one budget that is given, as a number.

    Raises:
        ValueError: when it is not a number, or the source already meets it.
    """
    ((name, text),) = given.items()
    if name == "parameters":
        budget = Budget(counts.parameters, _quantity(text), strict=False)
    elif name == "memory":
        budget = Budget(lambda arch: memory_bytes(arch, use), _bytes(text))
    else:
        budget = Budget(lambda arch: step_bytes(arch, use), step_bytes(source, use) / _times(text))
    if budget.limit >= budget.cost(source):
        raise ValueError(
            f"--{name} is {text}, which the source already meets: it has "
            f"{_in_words(source, source, use, given)}. Nothing would be pruned."
        )
    return budget


def _quantity(text: str) -> int:
    try:
        number = cli.quantity(text)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"--parameters is {error}.") from None
    if number < 1:
        raise ValueError(f"--parameters is {text}; expected at least 1.")
    return number


def _bytes(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmg]i?b)", text.lower())
    if match is None or not float(match[1]):
        raise ValueError(f"--memory is {text!r}; expected bytes such as 8GiB, 500MiB or 6GB.")
    return float(match[1]) * _BYTES[match[2]]


def _times(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)x?", text.lower())
    if match is None or float(match[1]) <= 1:
        raise ValueError(f"--speed is {text!r}; expected how many times the source's, such as 2x.")
    return float(match[1])


def _nothing_meets(
    source: Architecture, use: Use, budget: Budget, multiple: int, given: Mapping[str, str]
) -> str:
    ((name, text),) = given.items()
    near = nearest_shape(source, budget, multiple)
    sizes = " ".join(f"{size}={getattr(near, size)}" for size in _SIZES)
    return (
        f"No shape meets --{name} {text} with widths in multiples of {multiple}, half of the layers and a "
        "quarter of the widths at least, and widths that shrink alike to within a third. The nearest is "
        f"{sizes}, with {_in_words(near, source, use, given)}. Change --{name}, or give a smaller --multiple."
    )


def _in_words(arch: Architecture, source: Architecture, use: Use, given: Mapping[str, str]) -> str:
    """What an architecture has of that which the budget limits, in the unit of the budget."""
    ((name, text),) = given.items()
    if name == "parameters":
        return f"{counts.parameters(arch):,} parameters"
    texts = f"for {use.batch} x {use.context} tokens"
    if name == "memory":
        unit = text.lstrip("0123456789. ")
        return f"{memory_bytes(arch, use) / _BYTES[unit.lower()]:.4g} {unit} of weights and KV cache {texts}"
    times = step_bytes(source, use) / step_bytes(arch, use)
    return f"{times:.4g}x the source's speed of generating {texts}"


def _row(shape: Architecture, source: Architecture, use: Use) -> list[str]:
    sizes = [str(getattr(shape, name)) for name in _SIZES]
    memory = f"{memory_bytes(shape, use) / 2**30:.3g}"
    ratios = (cost(source, use) / cost(shape, use) for cost in (step_bytes, reading_flops))
    return [*sizes, f"{counts.parameters(shape):,}", memory, *(f"{ratio:.2f}x" for ratio in ratios)]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return ["  ".join(map(str.rjust, line, widths)) for line in (header, *rows)]


# --------------------------------------------------------------------- measured


def measured(
    shape: Architecture, source: Architecture, config: Mapping[str, Any], use: Use
) -> tuple[float, float]:
    """How many times faster than the source a shape generates and reads, here and with random weights.

    The two take turns, so that a change of the machine's speed meets both; ratios are medians.
    """
    models = [_random_model(arch, config) for arch in (shape, source)]
    ids = torch.zeros(use.batch, max(1, use.context - _STEPS), dtype=torch.long, device=models[0].device)
    times = [[_times_of(model, ids) for model in models] for _ in range(_ROUNDS + 1)][1:]
    generating, reading = (statistics.median(theirs[i] / ours[i] for ours, theirs in times) for i in (0, 1))
    return generating, reading


def _random_model(arch: Architecture, config: Mapping[str, Any]) -> Any:
    hf = copy.deepcopy(architecture_to_hf(arch, config))
    on_gpu = torch.cuda.is_available()
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(**hf))
    return made.to("cuda" if on_gpu else "cpu", torch.bfloat16 if on_gpu else torch.float32).eval()


@torch.no_grad()
def _times_of(model: Any, ids: Tensor) -> tuple[float, float]:
    """Seconds to generate some tokens after a prompt, and to read the prompt."""
    start = _now()
    out = model(ids, use_cache=True, logits_to_keep=1)
    read = _now()
    for _ in range(_STEPS):
        token = out.logits[:, -1:].argmax(-1)
        out = model(token, past_key_values=out.past_key_values, use_cache=True)
    return _now() - read, read - start


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
