"""What benchmarks share: the models they compare, paired timing, and the file a result goes to."""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llmshearing import cli
from llmshearing.models.composer_llama import ComposerMosaicLlama

RESULTS = Path(__file__).parent / "results"
BODY_25M = {"d_model": 512, "n_heads": 8, "n_layers": 8, "intermediate_size": 1376}


def positive(word: str) -> int:
    """A count on a command line: a whole number of at least 1."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is not a whole number of at least 1")
    return int(word)


def asked_rounds(module: str, doc: str | None, default: int) -> int:
    """The one argument of a benchmark of steps: how many of each kind to measure."""
    parser = cli.parser(module, doc)
    parser.add_argument(
        "rounds",
        metavar="ROUNDS",
        nargs="?",
        type=positive,
        default=default,
        help=f"measured steps of each kind, taken in turn (default: {default})",
    )
    return parser.parse_args().rounds


def shearing_model(sizes: Mapping[str, int], vocabulary: int, length: int, domains: int, prune: bool):
    """Our model; when `prune`, with masks of every kind, each to close a quarter."""
    target = {name: max(1, size * 3 // 4) for name, size in sizes.items()}
    l0 = {"lagrangian_warmup_steps": "10ba", "target_model": target} if prune else None
    names = [f"domain{i}" for i in range(domains)]
    cfg = {**sizes, "vocab_size": vocabulary, "max_seq_len": length, "set_names": names, "l0_module": l0}
    model = ComposerMosaicLlama(cfg)
    model.return_logits = False
    return model


def hf_model(
    sizes: Mapping[str, int], vocabulary: int, length: int, attention: str = "sdpa"
) -> LlamaForCausalLM:
    """transformers' LLaMA of the same shape, by default with its sdpa attention."""
    config = LlamaConfig(
        hidden_size=sizes["d_model"],
        num_attention_heads=sizes["n_heads"],
        num_key_value_heads=sizes["n_heads"],
        num_hidden_layers=sizes["n_layers"],
        intermediate_size=sizes["intermediate_size"],
        vocab_size=vocabulary,
        max_position_embeddings=length,
        use_cache=False,
    )
    config._attn_implementation = attention
    return LlamaForCausalLM(config)


def token_batch(vocabulary: int, sequences: int, length: int, domains: int) -> dict[str, torch.Tensor]:
    """Random tokens of random domains."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (sequences, length), generator=generator)
    return {"input_ids": ids, "labels": ids, "set": torch.arange(sequences) % domains}


def paired_seconds(functions: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every function, run in turn `rounds` times after one warm-up each."""
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(seconds: Mapping[str, list[float]], name: str, base: str) -> float:
    """Median of the ratios of runs that stood side by side."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))


def write_result(
    name: str, config: Mapping[str, Any], values: Mapping[str, Any], on: Mapping[str, Any] | None = None
) -> None:
    """Write `results/{name}.json` with the machine and the versions the values were measured on.

    Args:
        on: these, as `measured_on` gives them; default: here. Empty where each value has its own.
    """
    RESULTS.mkdir(exist_ok=True)
    result = {"benchmark": name, **(measured_on() if on is None else on), "config": config, "values": values}
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")


def measured_on() -> dict[str, Any]:
    """This machine and the versions of what a result depends on."""
    machine = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "date": time.strftime("%Y-%m-%d"),
    }
    packages = ("torch", "transformers", "mosaicml", "mosaicml-streaming", "numpy")
    versions = {"python": platform.python_version(), **{p: version(p) for p in packages}}
    return {"machine": machine, "versions": versions}


def processor() -> str:
    """The processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next(
        (line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor()
    )
