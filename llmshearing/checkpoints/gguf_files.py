"""Reads GGUF files: tensors by HF's names, the HF config and a tokenizer, all from the file alone.

The `gguf` package reads the container; this module interprets its content. An unknown key about the model, an
unknown tensor and a missing part are errors.

R rotated dimensions of a head, H heads.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmshearing.checkpoints.gguf_tokenizer import special_ids, tokenizer_files
from llmshearing.checkpoints.travelling import checked, with_config
from llmshearing.files import first_line
from llmshearing.models.rope import llama3_frequencies
from llmshearing.shapes.families import hf_class_name
from llmshearing.shapes.key_map import gguf_to_hf

FAMILIES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gptneox": "gpt_neox"}
_SIZES = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
_WITHOUT_MEANING = (  # for what the model computes
    "rope.scaling.finetuned",
    "tensor_data_layout",  # written for llama alone, whose projections are always permuted
)
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_ROPE_FACTORS = "rope_freqs.weight"


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, str | bytes]]:
    """The HF config, weights by HF names in fp32, and the files that travel with them, of a GGUF file.

    Args:
        path: the file, or any part of a split one, all of whose parts are read.

    Raises:
        FileNotFoundError: when the file or parts of it do not exist.
        ValueError: when it is broken, or holds anything unknown.
    """
    parts = [_open(part) for part in _parts(path)]
    fields, infos = _joined(parts, path)
    kind = fields.get("general.type", "model")
    if kind != "model":
        raise ValueError(f"{path} is a GGUF file of type {kind!r}; expected a model.")
    name = fields.get("general.architecture")
    if name not in FAMILIES:
        raise ValueError(
            f"{path} holds a model of architecture {name!r}; supported in GGUF: {', '.join(FAMILIES)}."
        )
    values = _Values({k.removeprefix(f"{name}."): v for k, v in fields.items() if k.startswith(f"{name}.")})
    try:
        config = _config(name, values, infos, fields)
        values.check_all_taken()
    except ValueError as error:
        raise ValueError(f"{path} ({name}): {error}") from error
    family = config["model_type"]
    named = {gguf_to_hf(info, family): info for info in infos if info != _ROPE_FACTORS}
    weights = {name: _as_in_hf(name, _dequantized(infos[ours], path), config) for name, ours in named.items()}
    files = {**tokenizer_files(fields, path), "generation_config.json": _generation(fields)}
    return config, weights, checked(with_config(files, config), path)


# ------------------------------------------------------------------ container


def _parts(path: Path) -> list[Path]:
    """All files of a split model of which `path` is one; else `path` alone."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    place = path.parent.resolve() / path.name
    match = _PART.fullmatch(place.name)
    if match is None:
        return [place]
    count = int(match[3])
    parts = [place.with_name(f"{match[1]}-{part:05d}-of-{match[3]}.gguf") for part in range(1, count + 1)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{path} is one of {count} parts, of which {', '.join(missing[:8])} "
            f"{'is' if len(missing) == 1 else 'are'} missing in {place.parent}: copy them there."
        )
    return parts


def _open(path: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ImportError(
            f"Reading {path} needs the package gguf: pip install 'llmshearing[gguf]'."
        ) from error

    class Reader(GGUFReader):
        """Rejects reads beyond the end, for which the library returns fewer values than requested."""

        def _get(self, offset: int, dtype: Any, count: int = 1, *args: Any, **kwargs: Any) -> Any:
            if int(offset) + int(count) * np.dtype(dtype).itemsize > len(self.data):
                raise ValueError("it ends before what it announces")
            return super()._get(offset, dtype, count, *args, **kwargs)

    try:
        reader = Reader(path)
    except Exception as error:  # broken bytes can raise anything
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) is truncated or not a GGUF file "
            f"({type(error).__name__}: {first_line(error)[:200]}); copy it again."
        ) from error
    if reader.byte_order != "I":
        raise ValueError(f"{path} is big-endian, which is not supported.")
    return reader


def _joined(parts: list[Any], path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata of the first part and tensors of all, after checking the number that each part carries."""
    fields, infos = {}, {}
    for number, part in enumerate(parts):
        own = {name: _content(name, field, path) for name, field in part.fields.items()}
        said, count = own.get("split.no", number), own.get("split.count", len(parts)) or 1
        if (said, count) != (number, len(parts)):
            raise ValueError(
                f"{path} says it is part {said + 1} of {count}, but is read as part {number + 1} of "
                f"{len(parts)}: restore the names of all parts, NAME-00001-of-{count:05d}.gguf and so on."
            )
        fields = {**own, **fields}
        for info in part.tensors:
            if info.name in infos:
                raise ValueError(f"{path}: {info.name} is in two parts.")
            infos[info.name] = info
    expected = fields.get("split.tensors.count", len(infos))
    if expected != len(infos):
        raise ValueError(f"{path} and its parts hold {len(infos)} tensors; {expected} were written.")
    return fields, infos


def _content(name: str, field: Any, path: Path) -> Any:
    """A value of the metadata; fp32 as the shortest decimal that rounds to it."""
    try:
        value = field.contents()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: {name} is not text in UTF-8 ({error}).") from error
    is_fp32 = isinstance(value, float) and field.types[0].name == "FLOAT32"
    return float(str(np.float32(value))) if is_fp32 else value


def _dequantized(info: Any, path: Path) -> Tensor:
    from gguf.quants import dequantize

    try:
        values = dequantize(info.data, info.tensor_type)
    except NotImplementedError as error:
        raise ValueError(
            f"{path}: {info.name} is stored as {info.tensor_type.name}, which the gguf package does not "
            "read; use a file of another type, such as F16 or Q8_0."
        ) from error
    shape = tuple(int(size) for size in reversed(info.shape))
    return torch.from_numpy(np.array(values, dtype=np.float32)).reshape(shape)


# ---------------------------------------------------------------------- model


class _Values:
    """The metadata about one architecture; a key that is not taken in the end is unknown."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._left = values

    def take(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        value = self._left.pop(key, default)
        if value is None:
            raise ValueError(f"it has no {key}.")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{key} is {str(value)[:100]}; one {_in_words(kind)} is supported.")
        return value

    def check_all_taken(self) -> None:
        left = {key: value for key, value in self._left.items() if key not in _WITHOUT_MEANING and value}
        if left:
            listed = ", ".join(f"{key} ({str(value)[:40]})" for key, value in left.items())
            raise ValueError(f"it has settings that are not supported: {listed}.")


_NUMBER = (int, float)


def _in_words(kind: Any) -> str:
    return {int: "whole number", bool: "truth value", str: "text"}.get(kind, "number")


def _config(
    name: str, values: _Values, infos: Mapping[str, Any], fields: Mapping[str, Any]
) -> dict[str, Any]:
    """The HF config; its sizes are compared with the shapes of the tensors later."""
    family = FAMILIES[name]
    if not values.take("attention.causal", bool, True):
        raise ValueError("attention.causal is false: a model that reads its text in both directions.")
    config: dict[str, Any] = {theirs: values.take(key, int) for key, theirs in _SIZES.items()}
    heads = config["num_attention_heads"]
    if heads < 1:
        raise ValueError(f"attention.head_count is {heads}; expected at least 1.")
    head_dim = values.take("attention.key_length", int, config["hidden_size"] // heads)
    if values.take("attention.value_length", int, head_dim) != head_dim:
        raise ValueError("attention.value_length is not attention.key_length, which is not supported.")
    rotated = values.take("rope.dimension_count", int, head_dim)
    config["rope_theta"] = values.take("rope.freq_base", _NUMBER, 10000.0)
    config["rope_scaling"] = _rope_scaling(values, config, rotated, infos)
    rows = int(infos["token_embd.weight"].shape[-1]) if "token_embd.weight" in infos else None
    config["vocab_size"] = values.take("vocab_size", int, rows)
    config["tie_word_embeddings"] = "output.weight" not in infos
    if family == "gpt_neox":
        config["layer_norm_eps"] = values.take("attention.layer_norm_epsilon", float)
        config["use_parallel_residual"] = values.take("use_parallel_residual", bool, True)
        config["rotary_pct"] = rotated / head_dim
        config["rotary_emb_base"] = config.pop("rope_theta")
        values.take("attention.head_count_kv", int, heads)
    else:
        if rotated != head_dim:
            raise ValueError(f"rope.dimension_count is {rotated}; expected all {head_dim} of a head.")
        config["rms_norm_eps"] = values.take("attention.layer_norm_rms_epsilon", float)
        config["num_key_value_heads"] = values.take("attention.head_count_kv", int, heads)
        config["head_dim"] = head_dim
        window = values.take("attention.sliding_window", int, 0)
        if window and family != "llama":
            raise ValueError(f"attention.sliding_window is {window}, which is not supported for {family}.")
        if window:
            family, config["sliding_window"] = "mistral", window
    if family in ("llama", "qwen3"):
        config["attention_bias"] = "blk.0.attn_q.bias" in infos
    if family == "llama":
        config["mlp_bias"] = "blk.0.ffn_up.bias" in infos
    head = {"architectures": [hf_class_name(family)], "model_type": family, "torch_dtype": "float32"}
    ids = special_ids(fields)  # None where there is none: HF would fill in its own for a missing key
    return {**head, **config, **{f"{name}_token_id": ids.get(name) for name in ("bos", "eos", "pad")}}


def _generation(fields: Mapping[str, Any]) -> str:
    """generation_config.json; the end of a turn or a message also ends the text."""
    ids = special_ids(fields)
    ends = [ids.get("eos"), *(fields.get(f"tokenizer.ggml.{key}_token_id") for key in ("eot", "eom"))]
    distinct = list(dict.fromkeys(end for end in ends if end is not None))
    config: dict[str, Any] = {f"{name}_token_id": ids[name] for name in ("bos", "pad") if name in ids}
    if distinct:
        config["eos_token_id"] = distinct if len(distinct) > 1 else distinct[0]
    return json.dumps(config, indent=2) + "\n"


def _as_in_hf(name: str, weight: Tensor, config: Mapping[str, Any]) -> Tensor:
    """A tensor with its rows in HF's order; GGUF reorders projections for its rotary embedding."""
    heads, kv_heads = config["num_attention_heads"], config.get("num_key_value_heads")
    if config["model_type"] in ("llama", "mistral"):
        for part, count in (("q_proj", heads), ("k_proj", kv_heads)):
            if f".{part}." in name and count and weight.shape[0] % (2 * count) == 0:
                pairs = weight.reshape(count, -1, 2, *weight.shape[1:])
                return pairs.transpose(1, 2).reshape(weight.shape).contiguous()
    if ".query_key_value." in name and weight.shape[0] % (3 * heads) == 0:
        parts = weight.reshape(3, heads, -1, *weight.shape[1:])
        return parts.transpose(0, 1).reshape(weight.shape).contiguous()
    return weight


# --------------------------------------------------------------------- rotary


def _rope_scaling(
    values: _Values, config: Mapping[str, Any], rotated: int, infos: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The rotary scaling of the file as HF writes it; None when there is none."""
    trained = config["max_position_embeddings"]
    older = values.take("rope.scale_linear", _NUMBER, 0)
    factor = values.take("rope.scaling.factor", _NUMBER, older) or 1.0
    kind = values.take("rope.scaling.type", str, "linear")
    original = values.take("rope.scaling.original_context_length", int, trained)
    if _ROPE_FACTORS in infos:
        if kind == "yarn" or (kind == "linear" and factor != 1):
            raise ValueError(f"it scales its rotary embedding twice: by {_ROPE_FACTORS} and by {kind}.")
        factors = _dequantized(infos[_ROPE_FACTORS], Path(_ROPE_FACTORS)).double().numpy()
        exponents = np.arange(0, rotated, 2) / rotated
        if factors.shape != exponents.shape:
            raise ValueError(f"{_ROPE_FACTORS} has {factors.shape} numbers; expected {len(exponents)}.")
        return scaling_of(factors, config["rope_theta"] ** -exponents, original)
    if kind == "none" or (kind == "linear" and factor == 1):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": float(factor)}
    if kind != "yarn":
        raise ValueError(f"rope.scaling.type is {kind!r}; supported: none, linear, yarn.")
    scaling = {"rope_type": "yarn", "factor": float(factor), "original_max_position_embeddings": original}
    if values.take("rope.scaling.yarn_ext_factor", _NUMBER, 1.0) not in (1.0, -1.0):
        raise ValueError("rope.scaling.yarn_ext_factor is given; only 1 is supported.")
    times = values.take("rope.scaling.attn_factor", _NUMBER, 1.0)
    times *= values.take("rope.scaling.yarn_attn_factor", _NUMBER, 1.0)
    if times != 1:
        scaling["attention_factor"] = times * (0.1 * math.log(max(1.0, factor)) + 1)
    for key in ("beta_fast", "beta_slow"):
        beta = values.take(f"rope.scaling.yarn_{key}", _NUMBER, 0)
        scaling |= {key: float(beta)} if beta else {}
    return scaling


def scaling_of(factors: np.ndarray, frequencies: np.ndarray, original: int) -> dict[str, Any] | None:
    """The `rope_scaling` that divides frequencies by `factors`, [R/2] both; None when it divides by 1.

    Llama 3's scaling keeps frequencies above a bound, divides those below another by one factor, and
    interpolates between the two. GGUF holds only the quotients. With n the turns that a
    frequency makes in the original context, 1/quotient is linear in n: 1/factor up to low_freq_factor, 1 from
    high_freq_factor on. These two and the original length are determined up to one common multiple.

    Raises:
        ValueError: when no such scaling gives these factors.
    """
    if np.allclose(factors, 1):
        return None
    factor = round(float(factors.max()), 4)
    if np.allclose(factors, factor):
        return {"rope_type": "linear", "factor": factor}
    candidates = [(1.0, 4.0, length) for length in (original, *(2**power for power in range(4, 21)))]
    smooth = (1 / factors - 1 / factor) / (1 - 1 / factor)
    between = (smooth > 1e-3) & (smooth < 1 - 1e-3)
    if between.sum() >= 2:  # smooth = (turns - low) / (high - low)
        slope, start = np.polyfit(frequencies[between] / (2 * math.pi), smooth[between], 1)
        width = original / slope
        candidates.append((float(-start * width), float((1 - start) * width), original))
    for low, high, length in candidates:
        scaling = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": length,
        }
        scaled = llama3_frequencies(torch.from_numpy(frequencies), scaling).numpy()
        if high > low and np.allclose(frequencies / scaled, factors, rtol=1e-4):
            return scaling
    raise ValueError(
        f"{_ROPE_FACTORS} scales the rotary embedding in a way that no rope_scaling of HF expresses."
    )
