"""How fast a model reads and writes, measured on this machine, beside what its shape promises.

Prefill reads a context of S tokens for B sequences at once and computes the first token of each; decoding
then computes the following tokens one after another, each from a cache. The models are held in memory
together and measured in turn, so that what else the machine does hits all of them, and medians are taken.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmshearing.progress import bar

_RESET_PEAK = "5"  # what Linux takes in clear_refs to forget the peak of a process's memory
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Setting:
    """Sequences at a time, tokens that each has before, and tokens that are computed after the first."""

    batch: int
    context: int
    new: int

    @property
    def name(self) -> str:
        """How the table names it."""
        return f"{self.batch} x {self.context}"


@dataclass(frozen=True)
class Timing:
    """Seconds until the first tokens were there, and seconds for the others."""

    first: float
    rest: float


@torch.no_grad()
def timed(model: PreTrainedModel, setting: Setting) -> Timing:
    """Time one prefill and the decoding after it, greedily, with transformers' default cache."""
    size = model.config.vocab_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, size, (setting.batch, setting.context), generator=generator).to(model.device)
    begin = _now()
    out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    token = _next(out.logits)
    first = _now()
    for _ in range(setting.new):
        out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
        token = _next(out.logits)
    return Timing(first - begin, _now() - first)


def _next(logits: Tensor) -> Tensor:
    return logits[:, -1:].argmax(-1)


def _now() -> float:
    """Seconds, after everything that was asked of the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(
    models: Sequence[PreTrainedModel], settings: Sequence[Setting], rounds: int
) -> list[dict[str, dict[str, Any]]]:
    """What each model reaches in each setting: medians of `rounds`, one round over all models after another.

    Returns:
        For each model, by the name of a setting: `prefill` and `decode` in tokens a second over the batch,
        `first_token` in seconds, `weights` and `peak` in bytes (peak is None where it cannot be had), and
        `rounds`, the seconds of each.
    """
    found: list[dict[str, dict[str, Any]]] = [{} for _ in models]
    with bar("measuring speed", total=(rounds + 2) * len(settings) * len(models), unit="run") as progress:
        for setting in settings:
            timings: list[list[Timing]] = [[] for _ in models]
            peaks: list[int | None] = []
            for model in models:
                timed(model, setting)  # warms up, and brings mapped weights into memory
                peaks.append(_peak(model, lambda model=model, setting=setting: timed(model, setting)))
                progress.update(2)
            for _ in range(rounds):
                for index, model in enumerate(models):
                    timings[index].append(timed(model, setting))
                    progress.update()
            for each, model, own, peak in zip(found, models, timings, peaks, strict=True):
                each[setting.name] = _summary(setting, own) | {"weights": weight_bytes(model), "peak": peak}
    return found


def _summary(setting: Setting, timings: Sequence[Timing]) -> dict[str, Any]:
    first = statistics.median(timing.first for timing in timings)
    rest = statistics.median(timing.rest for timing in timings)
    return {
        "prefill": setting.batch * setting.context / first,
        "decode": setting.batch * setting.new / rest,
        "first_token": first,
        "new": setting.new,
        "rounds": [[timing.first, timing.rest] for timing in timings],
    }


def weight_bytes(model: PreTrainedModel) -> int:
    """Bytes of the parameters, tied ones once."""
    return sum(p.nbytes for p in model.parameters())


def _peak(model: PreTrainedModel, work: Callable[[], object]) -> int | None:
    """Bytes of a model's weights and of the most that `work` holds beside them; None where it is unknown."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return weight_bytes(model) + torch.cuda.max_memory_allocated() - before
    if not _forget_peak():
        work()
        return None
    before = _resident("VmRSS")
    work()
    return weight_bytes(model) + max(0, _resident("VmHWM") - before)


def _forget_peak() -> bool:
    """Let the system forget the peak of this process's memory; False where it does not."""
    try:
        _CLEAR.write_text(_RESET_PEAK)
        return _STATUS.is_file()
    except OSError:
        return False


def _resident(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def promised(models: Sequence[PreTrainedModel], setting: Setting) -> list[dict[str, float]]:
    """What the shapes promise over the first model: `prefill` and `decode`.

    Prefill is bound by arithmetic: 2 operations for each parameter of a matrix and token, and 4 S H E / 2 a
    token and layer for causal attention; the head sees one token of a sequence. Decoding a small batch is
    bound by memory: the bytes of the matrices, read once for the batch, and those of the cache of each
    sequence. Neither counts what does not shrink with the model, such as the launch of each operation.
    """
    work = [(_prefill_operations(m, setting), _decode_bytes(m, setting)) for m in models]
    return [
        {"prefill_promised": work[0][0] / operations, "decode_promised": work[0][1] / size}
        for operations, size in work
    ]


def _matrices(model: PreTrainedModel) -> tuple[int, int]:
    """Numbers in the matrices of the blocks, and in the output head."""
    head: Any = model.get_output_embeddings()
    embedding: Any = model.get_input_embeddings()
    outside = {id(head.weight), id(embedding.weight)}
    blocks = sum(p.numel() for p in model.parameters() if p.dim() == 2 and id(p) not in outside)
    return blocks, head.weight.numel()


def _prefill_operations(model: PreTrainedModel, setting: Setting) -> float:
    blocks, head = _matrices(model)
    config = model.config
    width = config.num_attention_heads * _head_dim(config)
    attention = 2 * setting.context * width * config.num_hidden_layers
    return setting.batch * (setting.context * (2 * blocks + attention) + 2 * head)


def _decode_bytes(model: PreTrainedModel, setting: Setting) -> float:
    config = model.config
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    length = setting.context + setting.new / 2
    cache = 2 * setting.batch * length * kv_heads * _head_dim(config) * config.num_hidden_layers
    return (sum(_matrices(model)) + cache) * next(model.parameters()).element_size()


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
