"""Tiny GGUF files, laid out as llama.cpp's converter lays out an HF model."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedModel

from twins import CONFIGS, make, older_config

WORDS = 300  # a vocabulary of all bytes and some pairs

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gpt_neox": "gptneox",
}
_NAMES = (  # of HF, of GGUF; the longer ones first
    ("gpt_neox.embed_in", "token_embd"),
    ("gpt_neox.final_layer_norm", "output_norm"),
    ("embed_out", "output"),
    ("gpt_neox.layers.", "blk."),
    ("attention.query_key_value", "attn_qkv"),
    ("attention.dense", "attn_output"),
    ("dense_h_to_4h", "ffn_up"),
    ("dense_4h_to_h", "ffn_down"),
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
    ("model.layers.", "blk."),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("gate_proj", "ffn_gate"),
    ("up_proj", "ffn_up"),
    ("down_proj", "ffn_down"),
    ("mlp.", ""),
)
Metadata = Mapping[str, Any]


def tensors_of(model: PreTrainedModel) -> dict[str, np.ndarray]:
    """The tensors of an HF model by GGUF's names and in its order of rows."""
    config, found = model.config, {}
    heads = config.num_attention_heads
    for name, weight in model.state_dict().items():
        if name in ("lm_head.weight", "embed_out.weight") and config.tie_word_embeddings:
            continue
        array = weight.float().numpy()
        for theirs, ours in _NAMES:
            name = name.replace(theirs, ours)
        if config.model_type in ("llama", "mistral"):
            if ".attn_q." in name:
                array = _interleaved(array, heads)
            if ".attn_k." in name:
                array = _interleaved(array, config.num_key_value_heads)
        if "attn_qkv" in name:  # q, k and v of a head after each other -> all q, all k, all v
            size = array.shape[0] // (3 * heads)
            parts = [
                [array[(3 * h + p) * size : (3 * h + p + 1) * size] for h in range(heads)] for p in range(3)
            ]
            array = np.concatenate([row for part in parts for row in part])
        found[name] = np.ascontiguousarray(array)
    return found


def _interleaved(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows i and i + half of every head brought together."""
    size = array.shape[0] // heads
    order = [
        h * size + i + half * (size // 2) for h in range(heads) for i in range(size // 2) for half in (0, 1)
    ]
    return array[order]


def metadata_of(model: PreTrainedModel) -> dict[str, Any]:
    """What llama.cpp's converter says about a model, without its rotary scaling."""
    c, name = SimpleNamespace(**older_config(model.config)), ARCHITECTURES[model.config.model_type]
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    found = {
        "context_length": c.max_position_embeddings,
        "embedding_length": c.hidden_size,
        "block_count": c.num_hidden_layers,
        "feed_forward_length": c.intermediate_size,
        "attention.head_count": c.num_attention_heads,
    }
    if name == "gptneox":
        found |= {
            "rope.dimension_count": int(c.rotary_pct * head_dim),
            "attention.layer_norm_epsilon": c.layer_norm_eps,
            "use_parallel_residual": c.use_parallel_residual,
        }
    else:
        found |= {
            "attention.head_count_kv": c.num_key_value_heads,
            "attention.key_length": head_dim,
            "attention.value_length": head_dim,
            "attention.layer_norm_rms_epsilon": c.rms_norm_eps,
            "rope.freq_base": float(c.rope_theta),
        }
    if getattr(c, "sliding_window", None) and name == "llama":
        found["attention.sliding_window"] = c.sliding_window
    return {f"{name}.{key}": value for key, value in found.items()}


def byte_tokenizer(size: int, pre: str = "gpt-2") -> dict[str, Any]:
    """A byte-level tokenizer of `size` tokens whose last two are <s> and </s>."""
    letters = sorted(ByteLevel.alphabet())
    pairs = [a + b for a in letters[:10] for b in letters[:20]][: max(0, size - 2 - len(letters))]
    tokens = [*[*letters, *pairs][: size - 2], "<s>", "</s>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (size - 2) + [3, 3],
        "tokenizer.ggml.merges": [f"{pair[0]} {pair[1]}" for pair in pairs],
        "tokenizer.ggml.bos_token_id": size - 2,
        "tokenizer.ggml.eos_token_id": size - 1,
    }


def write(
    path: Path,
    model: PreTrainedModel,
    metadata: Metadata | None = None,
    tensors: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = lambda tensors: tensors,
) -> Path:
    """Write a model as a GGUF file.

    Args:
        metadata: further values, or others than the model's; None leaves one out.
        tensors: from the model's tensors to those that are written.
    """
    values = {**metadata_of(model), **byte_tokenizer(model.config.vocab_size), **(metadata or {})}
    write_raw(path, ARCHITECTURES[model.config.model_type], values, tensors(tensors_of(model)))
    return path


def write_raw(path: Path, name: str, metadata: Metadata, tensors: Mapping[str, np.ndarray]) -> None:
    """Write any values and tensors as a GGUF file."""
    writer = gguf.GGUFWriter(str(path), name)
    for key, value in metadata.items():
        if value is None:
            continue
        kind = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}[type(value)]
        getattr(writer, f"add_{kind}")(key, value)
    for key, tensor in tensors.items():
        writer.add_tensor(key, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rope_factors(frequencies: torch.Tensor, base: float, size: int) -> np.ndarray:
    """What divides the plain frequencies to give these, as `rope_freqs.weight` holds it."""
    plain = base ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)
    return (plain / frequencies).numpy().astype(np.float32)


def twin(name: str, **changes: Any) -> PreTrainedModel:
    """A tiny model of `CONFIGS` whose vocabulary is `WORDS`, with changes to its config."""
    config = copy.deepcopy(CONFIGS[name])
    for key, value in {"vocab_size": WORDS, **changes}.items():
        setattr(config, key, value)
    return make(config)
