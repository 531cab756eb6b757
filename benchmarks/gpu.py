"""Tokens/s and MFU on one GPU: dense and pruning steps beside transformers', in bf16 at 4,096 tokens.

    python -m benchmarks.gpu [--check] [--tiny] [--eager] [--shapes 1.3B ...] [--sequences N] [--steps N]

With `--check` it measures no speed: within two minutes it proves that this machine's torch, transformers and
GPU compute, shard, resume and export as they should (`benchmarks/gpu_check.py`), and writes `gpu_check.json`
(`gpu_check_tiny_cpu.json` for `--check --tiny` on a CPU).

MFU counts matrix products (`llmshearing.shapes.counts.training_flops`) against the device's peak in bf16:
those of the source and of a forward and backward pass alone, whatever is executed, recomputed or taught.
Writes `benchmarks/results/gpu.json`; with `--tiny`, which takes 64 tokens, `gpu_tiny_cpu.json` there.

Example:

    python -m benchmarks.gpu --sequences 8
"""

import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import product
from typing import Any

import torch
from composer.distributed.activation_checkpointing import apply_ac

from benchmarks import gpu_check
from benchmarks.common import hf_model, positive, write_result
from benchmarks.open_units import STEPS, WARM_UP, method_of, scheduled
from benchmarks.steps import finish
from llmshearing import cli
from llmshearing.config import DistillationConfig, ModelConfig
from llmshearing.models.composer_llama import ComposerMosaicLlama
from llmshearing.models.distillation import Teacher
from llmshearing.shapes.counts import training_flops
from llmshearing.shapes.model_section import architecture_of

SHAPES = {
    "370M": {"d_model": 1024, "n_heads": 8, "n_layers": 24, "intermediate_size": 2816},
    "1.3B": {"d_model": 2048, "n_heads": 16, "n_layers": 24, "intermediate_size": 5504},
    "2.7B": {"d_model": 2560, "n_heads": 20, "n_layers": 32, "intermediate_size": 6912},
    "7B": {"d_model": 4096, "n_heads": 32, "n_layers": 32, "intermediate_size": 11008},
}
TINY = {
    "370M": {"d_model": 32, "n_heads": 2, "n_layers": 2, "intermediate_size": 64},
    "1.3B": {"d_model": 64, "n_heads": 4, "n_layers": 2, "intermediate_size": 96},
    "2.7B": {"d_model": 96, "n_heads": 6, "n_layers": 3, "intermediate_size": 128},
    "7B": {"d_model": 128, "n_heads": 8, "n_layers": 3, "intermediate_size": 192},
}
PRUNING = {"2.7B": "1.3B", "7B": "1.3B"}
SHARES = {0: 0, 50: WARM_UP // 2, 100: STEPS - 1}  # part of the target, in %, and the step that has it
TAUGHT = {"1.3B": "2.7B"}  # a student and its teacher
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}  # bf16, dense, as the vendor gives them
VOCABULARY = 32_000
HF_LIGER = "HF with Liger"


def has_liger() -> bool:
    """Whether Liger's kernels, which need CUDA, can be measured."""
    return torch.cuda.is_available() and find_spec("liger_kernel") is not None


def cases() -> Iterator[dict[str, Any]]:
    """What is measured: dense models by attention, compilation and recomputation; pruning; a teacher."""
    models = ["HF", *([HF_LIGER] if has_liger() else []), "ours"]
    attentions = ["sdpa", "flash"] if find_spec("flash_attn") else ["sdpa"]
    for attention, compiled in product(attentions, (False, True)):
        options = {"attention": attention, "compile": compiled, "recompute": True}
        for shape, model in product(("370M", "1.3B", "2.7B"), models):
            yield {"model": model, "source": shape, **options}
        for model in models:
            yield {"model": model, "source": "1.3B", **options, "recompute": False}
    options = {"model": "ours", "attention": attentions[-1], "compile": False, "recompute": True}
    for (source, target), share, execute in product(PRUNING.items(), SHARES, ("all", "open")):
        yield {**options, "source": source, "target": target, "share": share, "execute": execute}
    for student, teacher in TAUGHT.items():
        yield {**options, "source": student, "teacher": teacher}


def make_step(
    case: dict[str, Any], shapes: dict[str, Any], batch: dict[str, torch.Tensor]
) -> Callable[[], Any]:
    """The training step of a case on the batch's device: bf16 autocast, activation checkpointing, AdamW."""
    device = batch["input_ids"].device
    length = batch["input_ids"].shape[1]
    model, loss = (ours if case["model"] == "ours" else hf)(case, shapes, length, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0 if case.get("target") else 1e-4, fused=True)
    if case["compile"]:
        model.compile()

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            value = loss(model, batch)
        value.backward()
        finish(optimizer)

    return scheduled(model, SHARES[case["share"]], step) if case.get("target") else step


def ours(case: dict[str, Any], shapes: dict[str, Any], length: int, device: torch.device):
    """Our model and its loss: dense, taught, or pruning with its masks on the schedule."""
    cfg = {"vocab_size": VOCABULARY, "max_seq_len": length, "attn_impl": case["attention"]}
    if case.get("target"):
        l0 = {"constraint": "projection", "lagrangian_warmup_steps": f"{WARM_UP}ba"}
        cfg |= {"l0_module": l0 | {"target_model": shapes[case["target"]]}, "execute": case["execute"]}
    model = made({**shapes[case["source"]], **cfg}, device)
    model.return_logits = False
    if case.get("target"):
        for mask in method_of(model).masks.values():  # as unequal as masks are after some training
            torch.nn.init.normal_(mask.z_loga, std=4.0)  # type: ignore[union-attr,arg-type]
    if case.get("teacher"):
        decoder = made({**shapes[case["teacher"]], **cfg}, device).model.bfloat16()
        model.teacher = Teacher(decoder, DistillationConfig())
    if case["recompute"]:
        apply_ac(model, True, False, model.model.activation_checkpointing_fn)
    return model, lambda m, batch: m.loss(m(batch), batch)["total"]


def made(cfg: dict[str, Any], device: torch.device) -> ComposerMosaicLlama:
    """Our model with random weights, drawn on the device."""
    model = ComposerMosaicLlama({**cfg, "init_device": "meta"}).to_empty(device=device)
    model.apply(model.model.param_init_fn)
    return model


def hf(case: dict[str, Any], shapes: dict[str, Any], length: int, device: torch.device):
    """transformers' model of the same shape and its loss, with Liger's kernels where the case says so."""
    attention = {"sdpa": "sdpa", "flash": "flash_attention_2"}[case["attention"]]
    with device:
        model = hf_model(shapes[case["source"]], VOCABULARY, length, attention)
    if case["model"] == HF_LIGER:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance  # type: ignore[import-not-found]

        _apply_liger_kernel_to_instance(model)
    if case["recompute"]:
        model.gradient_checkpointing_enable()
    return model, lambda m, batch: m(input_ids=batch["input_ids"], labels=batch["labels"]).loss


def measure(case: dict[str, Any], shapes: dict[str, Any], batch: dict[str, torch.Tensor], steps: int):
    """Tokens/s, MFU and peak memory of a case; the reason where it could not run."""
    device = batch["input_ids"].device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try:
        step = make_step(case, shapes, batch)
        seconds = [timed(step, device) for _ in range(steps + 3)][3:]
    except torch.OutOfMemoryError:
        return {"failed": "out of memory"}
    rate = batch["input_ids"].numel() / statistics.median(seconds)
    flops = flops_per_token(shapes[case["source"]], batch["input_ids"].shape[1])
    peak = next((v for k, v in PEAK_TFLOPS.items() if device.type == "cuda" and k in name_of(device)), None)
    return {
        "tokens_per_second": rate,
        "mfu": rate * flops / (peak * 1e12) if peak else None,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
    }


def timed(step: Callable[[], Any], device: torch.device) -> float:
    """Seconds of a step, the device's work included."""
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def flops_per_token(sizes: dict[str, int], length: int) -> float:
    """Operations of a step for each token."""
    cfg = ModelConfig(**sizes, vocab_size=VOCABULARY, max_seq_len=length)
    return training_flops(architecture_of(cfg), 1, length) / length


def name_of(device: torch.device) -> str:
    """The device's name."""
    return torch.cuda.get_device_name() if device.type == "cuda" else "cpu"


def main() -> None:
    parser = cli.parser("benchmarks.gpu", __doc__)
    parser.add_argument("--check", action="store_true", help="prove the machine instead of measuring it")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to prove the path without a GPU")
    parser.add_argument(
        "--sequences", type=positive, default=4, metavar="N", help="sequences of a step (default: 4)"
    )
    parser.add_argument(
        "--steps", type=positive, default=10, metavar="N", help="measured steps of each case (default: 10)"
    )
    parser.add_argument("--eager", action="store_true", help="nothing compiled, which takes most of the time")
    parser.add_argument(
        "--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="sources to measure (default: all)"
    )
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.tiny:
        parser.error("no CUDA device; `--tiny` proves the path on the CPU.")
    if arguments.check:
        sys.exit(0 if gpu_check.run(arguments.tiny) else 1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    length, shapes = (64, TINY) if arguments.tiny else (4096, SHAPES)
    ids = torch.randint(0, VOCABULARY, (arguments.sequences, length), device=device)
    batch = {"input_ids": ids, "labels": ids}
    results = []
    for case in cases():
        if case["source"] not in arguments.shapes or (case["compile"] and arguments.eager):
            continue
        result = {**case, **measure(case, shapes, batch, arguments.steps)}
        results.append(result)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        sys.stdout.write(f"{result}\n")
    config = {"length": length, "sequences": arguments.sequences, "shapes": shapes, "precision": "amp_bf16"}
    write_result("gpu_tiny_cpu" if arguments.tiny else "gpu", config, {"cases": results})


if __name__ == "__main__":
    main()
