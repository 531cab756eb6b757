"""HF models to Composer checkpoints and back: `llmshearing convert` and `llmshearing export`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmshearing import cli
from llmshearing.checkpoints.describing import describe
from llmshearing.checkpoints.hf_files import from_hf, read_hf, untied, write_hf
from llmshearing.checkpoints.opening import Checkpoint, read_checkpoint
from llmshearing.checkpoints.travelling import with_config
from llmshearing.checkpoints.weights import check_finite, shape_in_words
from llmshearing.checkpoints.writing import check_output, write_checkpoint
from llmshearing.files import check_new_folder
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.key_map import renamed_to_hf


def save_hf_to_composer(hf_path: str | Path, out: str | Path, *, untie: bool = False) -> None:
    """Convert an HF model to a Composer checkpoint, which pruning and training start from.

    Types are kept.

    Example:

        llmshearing convert models/Llama-2-7b-hf models/llama2-7b.pt

    Args:
        hf_path: folder, safetensors or GGUF file, or name on the hub.
        out: file to write.
        untie: keep the output head among the weights, although the config ties it to the embedding.

    Raises:
        ValueError: for a model that is not supported, whose weights do not match its config or are not
            finite, or that has nothing to untie.
        OSError: when something is missing or cannot be written.
    """
    check_output(out, hf_path)
    model = untied(read_hf(hf_path)) if untie else read_hf(hf_path)
    weights, arch = from_hf(model)
    check_finite(weights, hf_path)
    write_checkpoint(out, weights, {"hf_files": model.files, "config": None})
    cli.say(f"{out}: {arch.family}, {shape_in_words(arch)}, {_count(weights):,} parameters")


def save_composer_to_hf(
    checkpoint_path: str | Path, out: str | Path, overrides: Mapping[str, Any] | None = None
) -> None:
    """Convert a Composer checkpoint to an HF folder: weights, config, generation config and tokenizer.

    Sizes are read from the weights; those that are given are checked against them.

    Example:

        llmshearing export runs/continue/latest-rank0.pt models/sheared-1.3b

    Args:
        checkpoint_path: file, or folder of a sharded checkpoint.
        out: folder to write.
        overrides: keys of the HF config, such as hidden_size=2048.

    Raises:
        ValueError: when masks are not yet applied, or weights, record and overrides contradict each other.
        OSError: when something is missing or cannot be written.
    """
    check_new_folder(Path(out))
    checkpoint = read_checkpoint(checkpoint_path)
    if checkpoint.section:
        raise ValueError(
            f"{checkpoint_path} is the checkpoint of a pruning run, whose masks are not applied yet; "
            f"`llmshearing prune {checkpoint_path} --hf {out}` applies them and writes the HF folder too."
        )
    arch, config = describe(checkpoint, overrides or {})
    check_finite(checkpoint.weights, checkpoint_path)
    export(checkpoint.weights, arch, config, checkpoint.hf_files, out)
    cli.say(f"{out}: {arch.family}, {shape_in_words(arch)}, {_count(checkpoint.weights):,} parameters")
    if not any(name.startswith("tokenizer") for name in checkpoint.hf_files):
        cli.say(f"{checkpoint_path} carries no tokenizer; copy that of the source model to {out}.")


def export(
    weights: Mapping[str, Tensor],
    arch: Architecture,
    config: Mapping[str, Any],
    files: Mapping[str, str | bytes],
    out: str | Path,
) -> None:
    """Write weights by our names as an HF folder with `config`, its type set to that of the weights."""
    write_hf(out, renamed_to_hf(weights, arch), with_dtype(config, weights), files)


def with_dtype(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """`config` with the type in which most parameters are."""
    counts: dict[torch.dtype, int] = {}
    for weight in weights.values():
        counts[weight.dtype] = counts.get(weight.dtype, 0) + weight.numel()
    name = str(max(counts, key=lambda dtype: counts[dtype])).removeprefix("torch.")
    return {**config, "dtype" if "dtype" in config else "torch_dtype": name}


def record_of(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Any]:
    """The record of `checkpoint` for weights that `config` describes, no longer those of its run."""
    return {**(checkpoint.record or {}), "hf_files": with_config(checkpoint.hf_files, config)}


def _count(weights: Mapping[str, Tensor]) -> int:
    return sum(weight.numel() for weight in weights.values())
