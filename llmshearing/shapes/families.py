"""The table of model families.

A new LLaMA-like family is one row in `FAMILIES`, when its weights have LLaMA's names; what no single key of
its config says is read by one function of the row and said by another (`llmshearing.shapes.hf_keys`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.hf_keys import (
    check_neox_bias,
    check_no_score_cap,
    read_attention_bias,
    read_only_attention,
    read_query_scalar,
    read_rotated_layers,
    read_switched_windows,
    read_windows,
    write_attention_bias,
    write_local_rope,
    write_longrope,
    write_multiplier,
    write_olmo2_scaling,
    write_olmo3_rope,
    write_only_attention,
    write_query_scalar,
    write_qwen_windows,
    write_rotated_layers,
    write_switched_windows,
    write_windows,
)


@dataclass(frozen=True)
class Family:
    """How one HF `model_type` maps to an `Architecture`.

    Attributes:
        hf_class: its class in `transformers`.
        keys: fields of `Architecture` by the keys of the HF config that say just that.
        fixed: fields with one value in the family.
        adjust: reads what no single key says, and rejects what is not supported.
        express: the inverse of `adjust`: the keys that `adjust` reads, for an architecture.
        local_rope: where layers with a window rotate in their own way, the key of their base.
    """

    hf_class: str
    keys: Mapping[str, str]
    fixed: Mapping[str, Any]
    adjust: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda hf: {}
    express: Callable[[Architecture], dict[str, Any]] = lambda arch: {}
    local_rope: str | None = None


def _without(keys: Mapping[str, str], name: str) -> dict[str, str]:
    return {ours: theirs for ours, theirs in keys.items() if ours != name}


def _all(*parts: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    """What several functions read or say."""
    return lambda given: {key: value for part in parts for key, value in part(given).items()}


_LLAMA_KEYS = {
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "n_layers": "num_hidden_layers",
    "intermediate_size": "intermediate_size",
    "vocab_size": "vocab_size",
    "max_seq_len": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
    "rope_scaling": "rope_scaling",
    "tie_embeddings": "tie_word_embeddings",
    "activation": "hidden_act",
}
_NEOX_KEYS = {
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_layers": "num_hidden_layers",
    "intermediate_size": "intermediate_size",
    "vocab_size": "vocab_size",
    "max_seq_len": "max_position_embeddings",
    "norm_eps": "layer_norm_eps",
    "rope_theta": "rotary_emb_base",
    "rope_scaling": "rope_scaling",
    "rotary_pct": "rotary_pct",
    "tie_embeddings": "tie_word_embeddings",
    "parallel_residual": "use_parallel_residual",
    "activation": "hidden_act",
}
_GRANITE_KEYS = {
    **_LLAMA_KEYS,
    "attention_multiplier": "attention_multiplier",
    "embedding_multiplier": "embedding_multiplier",
    "residual_multiplier": "residual_multiplier",
    "logits_scaling": "logits_scaling",
}
_GEMMA_KEYS = {
    **_LLAMA_KEYS,
    "activation": "hidden_activation",
    "attention_softcap": "attn_logit_softcapping",
    "logits_softcap": "final_logit_softcapping",
}
_MLP_BIAS = {"mlp_bias": "mlp_bias"}
REQUIRED = ("d_model", "n_heads", "n_layers", "intermediate_size", "vocab_size", "max_seq_len")
"""What has no default: every config says it."""

FAMILIES: dict[str, Family] = {
    "llama": Family(
        "LlamaForCausalLM",
        {**_LLAMA_KEYS, **_MLP_BIAS},
        {},
        read_attention_bias,
        write_attention_bias,
    ),
    "mistral": Family("MistralForCausalLM", {**_LLAMA_KEYS, "sliding_window": "sliding_window"}, {}),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        _LLAMA_KEYS,
        {"qkv_bias": True},
        read_switched_windows,
        write_qwen_windows,
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        _LLAMA_KEYS,
        {"qk_norm": True},
        _all(read_attention_bias, read_switched_windows),
        _all(write_attention_bias, write_qwen_windows),
    ),
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        {**_LLAMA_KEYS, **_MLP_BIAS},
        {},
        _all(read_attention_bias, read_switched_windows, read_rotated_layers),
        _all(write_attention_bias, write_switched_windows, write_rotated_layers),
    ),
    "olmo2": Family(
        "Olmo2ForCausalLM",
        _LLAMA_KEYS,
        {"qk_norm": True},
        read_attention_bias,
        _all(write_attention_bias, write_olmo2_scaling),
    ),
    "olmo3": Family(
        "Olmo3ForCausalLM",
        _LLAMA_KEYS,
        {"qk_norm": True},
        _all(read_attention_bias, read_windows),
        _all(write_attention_bias, write_windows, write_olmo3_rope),
        local_rope="rope_theta",
    ),
    "phi3": Family(
        "Phi3ForCausalLM",
        {**_LLAMA_KEYS, "rotary_pct": "partial_rotary_factor", "sliding_window": "sliding_window"},
        {},
        express=write_longrope,
    ),
    "granite": Family(
        "GraniteForCausalLM",
        {**_GRANITE_KEYS, **_MLP_BIAS},
        {},
        read_attention_bias,
        _all(write_attention_bias, write_multiplier),
    ),
    "granitemoehybrid": Family(
        "GraniteMoeHybridForCausalLM",
        {**_without(_GRANITE_KEYS, "head_dim"), "intermediate_size": "shared_intermediate_size"},
        {},
        _all(read_attention_bias, read_only_attention),
        _all(write_attention_bias, write_multiplier, write_only_attention),
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        _GEMMA_KEYS,
        {},
        _all(read_attention_bias, read_windows, read_query_scalar),
        _all(write_attention_bias, write_windows, write_query_scalar),
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        _without(_GEMMA_KEYS, "attention_softcap"),
        {"qk_norm": True},
        _all(
            read_attention_bias,
            read_windows,
            read_query_scalar,
            check_no_score_cap,
        ),
        _all(
            write_attention_bias,
            write_windows,
            write_query_scalar,
            write_local_rope,
        ),
        local_rope="rope_local_base_freq",
    ),
    "gpt_neox": Family(
        "GPTNeoXForCausalLM",
        _NEOX_KEYS,
        {"qkv_bias": True, "out_bias": True, "mlp_bias": True},
        check_neox_bias,
    ),
}


def hf_class_name(family: str) -> str:
    """The class in `transformers` of a family's language models, such as LlamaForCausalLM."""
    return FAMILIES[family].hf_class


def family_of_class(name: str) -> str:
    """The family of a class in `transformers`.

    Raises:
        ValueError: for a class that belongs to no supported family.
    """
    classes = {hf_class_name(family): family for family in FAMILIES}
    if name not in classes:
        raise ValueError(f"The model class {name} is not supported; supported: {', '.join(classes)}.")
    return classes[name]


def size_keys(family: str) -> list[str]:
    """Keys of a family's HF config that the shapes of weights fix."""
    ours = ("d_model", "n_heads", "n_kv_heads", "head_dim", "n_layers", "intermediate_size", "vocab_size")
    return [key for name, key in FAMILIES[family].keys.items() if name in ours]
