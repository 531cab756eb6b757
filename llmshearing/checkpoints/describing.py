"""The model that a checkpoint holds: sizes from its weights, the rest from its record and configuration."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf.errors import OmegaConfBaseException
from tokenizers import Tokenizer
from yaml import YAMLError

from llmshearing import cli
from llmshearing.checkpoints.opening import Checkpoint
from llmshearing.checkpoints.safe_load import load_omegaconf
from llmshearing.checkpoints.special_tokens import special_token_ids
from llmshearing.checkpoints.travelling import parse_config
from llmshearing.checkpoints.weights import check_weights, query_rows, sizes_of
from llmshearing.config import ModelConfig, as_model_config
from llmshearing.config.reading import load_values, parse_record
from llmshearing.config.references import resolve_references
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.families import family_of_class, size_keys
from llmshearing.shapes.hf_config import architecture_from_hf, architecture_to_hf
from llmshearing.shapes.key_map import PREFIX
from llmshearing.shapes.model_section import architecture_of, complete

_LLAMA_2 = {"model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
_GUESSABLE = ("llama", "mistral", "qwen2", "qwen3", "gpt_neox")  # from weights and a few arguments
_NO_SHAPE = ("model_class", "_name_or_path")


def completed(section: ModelConfig, checkpoint: Checkpoint) -> ModelConfig:
    """`section` with every size it leaves out read from a checkpoint.

    A checkpoint without a description, such as a bare state dict of the original, is taken to hold the model
    that `section` describes.

    Raises:
        ValueError: when `section` contradicts the checkpoint.
    """
    described = checkpoint.hf_config is not None or run_config(checkpoint) is not None
    if described or not section.n_heads:
        arch = architecture_from_hf(_sized(checkpoint, {})[1])
        check_weights(checkpoint.weights, arch, checkpoint.path)
        return complete(section, arch, str(checkpoint.path))
    head_dim = section.head_dim or (section.d_model or 0) // section.n_heads
    sizes = sizes_of(checkpoint.weights, head_dim, checkpoint.path)
    return complete(section, architecture_of(replace(section, **sizes)), str(checkpoint.path))


def describe(
    checkpoint: Checkpoint, overrides: Mapping[str, Any] | None = None
) -> tuple[Architecture, dict[str, Any]]:
    """The architecture of a checkpoint and its HF config.

    Sizes come from the tensors; the rest from the HF config in the record, else from the configuration of
    the run, else from `overrides` over the values of Llama 2.

    Args:
        overrides: keys of the HF config, `model_class` and `_name_or_path`, as given on the command line.

    Raises:
        ValueError: when overrides contradict the tensors, or the tensors do not match the model described.
    """
    overrides = overrides or {}
    arch, hf = _sized(checkpoint, overrides)
    files = checkpoint.hf_files
    if checkpoint.hf_config is None and "tokenizer.json" in files:  # a model trained from scratch
        hf |= special_token_ids(*_tokenizer(files, checkpoint.path))
    _check_overrides(hf, overrides, arch.family, checkpoint.path)
    hf |= {key: value for key, value in overrides.items() if key != "model_class"}
    arch = architecture_from_hf(hf)
    check_weights(checkpoint.weights, arch, checkpoint.path)
    return arch, hf


def _tokenizer(files: Mapping[str, str | bytes], source: Path) -> tuple[Tokenizer, dict[str, Any]]:
    try:
        tokenizer = Tokenizer.from_str(str(files["tokenizer.json"]))
    except Exception as error:  # the library has no narrower exception
        raise ValueError(f"The tokenizer.json in {source} is not a tokenizer: {error}") from error
    return tokenizer, parse_config(files.get("tokenizer_config.json", "{}"), source)


def run_config(checkpoint: Checkpoint) -> ModelConfig | None:
    """The `model` section of the run that wrote a checkpoint: from its record, else from a `config.yaml` or
    an original `config.pt` beside it; None without any.

    Raises:
        ValueError: when it cannot be read.
    """
    beside = checkpoint.path.parent
    source, text = checkpoint.path, (checkpoint.record or {}).get("config")
    try:
        if text:
            values = parse_record(text)
        elif (source := beside / "config.yaml").is_file():
            values = load_values(source)
        elif (source := beside / "config.pt").is_file():
            values = resolve_references(load_omegaconf(source))
        else:
            return None
        if not isinstance(values, Mapping) or not isinstance(values.get("model"), Mapping):
            raise ValueError("it has no section `model`")
        return as_model_config(values.get("model"))
    except (YAMLError, OmegaConfBaseException, RecursionError, ValueError) as error:
        raise ValueError(f"The run's configuration in {source} cannot be read: {error}") from error


def _sized(checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> tuple[Architecture, dict[str, Any]]:
    """The architecture and HF config, without the special token ids that only a tokenizer knows."""
    base = _described_by(checkpoint, overrides)
    sizes = sizes_of(checkpoint.weights, base.head_dim, checkpoint.path)
    if base.differs_by_layer and sizes["n_layers"] != base.n_layers:
        raise ValueError(
            f"{checkpoint.path} has the weights of {sizes['n_layers']} layers, but its config describes "
            f"{base.n_layers} layers that differ: which of them these are cannot be known."
        )
    arch = base.resized(**sizes)
    return arch, architecture_to_hf(arch, checkpoint.hf_config)


def _described_by(checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> Architecture:
    """An architecture of which everything but the sizes holds, and the size of a head."""
    hf = checkpoint.hf_config
    if hf is not None:
        return architecture_from_hf(hf)
    cfg = run_config(checkpoint)
    if cfg is not None:
        head_dim = (
            cfg.head_dim or ((cfg.d_model or 0) // (cfg.n_heads or 1)) or _head_dim(checkpoint, overrides)
        )
        return architecture_of(replace(cfg, **sizes_of(checkpoint.weights, head_dim, checkpoint.path)))
    return _guessed(checkpoint, overrides)


def _guessed(checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> Architecture:
    """The architecture without any description, from weights and overrides; the rest is Llama 2's."""
    names = checkpoint.weights
    block = f"{PREFIX}blocks.0."
    family = "llama"
    if f"{block}attn.query_key_value.weight" in names:
        family = "gpt_neox"
    elif f"{block}attn.q_norm.weight" in names:
        family = "qwen3"
    elif f"{block}attn.wq.bias" in names and f"{block}attn.out_proj.bias" not in names:
        family = "qwen2"
    if "model_class" in overrides:
        family = family_of_class(overrides["model_class"])
    if family not in _GUESSABLE:
        raise ValueError(
            f"{checkpoint.path} carries no HF config, and its weights do not tell all that a model of family "
            f"{family} needs, such as windows and multipliers: put the config.yaml of its run beside it, or "
            "convert the HF model anew."
        )
    head_dim = _head_dim(checkpoint, overrides)
    config = _LLAMA_2 if family == "llama" else {"model_type": family}
    sizes = sizes_of(names, head_dim, checkpoint.path)
    return architecture_from_hf(config).resized(
        **sizes,
        tie_embeddings=f"{PREFIX}output.weight" not in names,
        qkv_bias=f"{block}attn.wq.bias" in names or family == "gpt_neox",
        out_bias=f"{block}attn.out_proj.bias" in names,
        mlp_bias=f"{block}mlp.up_proj.bias" in names,
    )


def _head_dim(checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> int:
    for key in ("head_dim", "num_attention_heads"):
        if key in overrides and (not isinstance(overrides[key], int) or overrides[key] < 1):
            raise ValueError(f"{key}={overrides[key]} was given; expected a whole number of at least 1.")
    if "head_dim" in overrides:
        return overrides["head_dim"]
    if "num_attention_heads" not in overrides:
        raise ValueError(
            f"{checkpoint.path} does not say how many heads its model has: it carries no HF config, and "
            "there is no config.yaml or config.pt beside it. Give num_attention_heads=... (in a run: "
            "model.n_heads) and whatever else differs from Llama 2, such as rope_theta=... ."
        )
    return query_rows(checkpoint.weights, checkpoint.path) // overrides["num_attention_heads"]


def _check_overrides(
    hf: Mapping[str, Any], overrides: Mapping[str, Any], family: str, source: str | Path
) -> None:
    """Reject overrides that no config of the family has, or that the weights contradict.

    Raises:
        ValueError: for the first such override.
    """
    if "model_class" in overrides and family_of_class(overrides["model_class"]) != family:
        raise ValueError(
            f"model_class={overrides['model_class']} was given, but {source} is a model of family {family}."
        )
    known = [*architecture_to_hf(architecture_from_hf(hf)), *hf, *_NO_SHAPE]
    for key, value in overrides.items():
        if key not in known:
            raise ValueError(f"{key} is not a key of the HF config{cli.nearest(key, known) or '.'}")
        if key in size_keys(family) and value != hf.get(key):
            raise ValueError(
                f"{key}={value} was given, but the weights of {source} have {hf.get(key)}; leave {key} out: "
                "sizes are read from the weights."
            )
