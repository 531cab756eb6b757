"""What no single key of an HF config says: for each case a function that reads it and one that writes it.

A reader takes an HF config with the defaults of its class and returns fields of `Architecture`; its inverse
takes an architecture and returns keys. `llmshearing.shapes.families` puts them together.
"""

from collections.abc import Mapping
from typing import Any

from llmshearing.shapes.architecture import Architecture

_WINDOWED, _FULL = "sliding_attention", "full_attention"


def read_attention_bias(hf: Mapping[str, Any]) -> dict[str, Any]:
    bias = bool(hf.get("attention_bias", False))
    return {"qkv_bias": bias, "out_bias": bias}


def write_attention_bias(arch: Architecture) -> dict[str, Any]:
    return {"attention_bias": arch.qkv_bias}


def read_windows(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The window, and the layers that have it."""
    types = _list(hf, "layer_types")
    if unknown := sorted({str(kind) for kind in types} - {_WINDOWED, _FULL}):
        raise ValueError(
            f"layer_types has {', '.join(unknown)} in the HF config; supported: {_FULL} and {_WINDOWED}."
        )
    window = hf.get("sliding_window")
    if window is not None and (not isinstance(window, int) or window < 1):
        raise ValueError(f"sliding_window is {window!r} in the HF config; expected a whole number above 0.")
    return {"sliding_window": window, "window_layers": tuple(kind == _WINDOWED for kind in types)}


def write_windows(arch: Architecture) -> dict[str, Any]:
    types = [_FULL if arch.window(layer) is None else _WINDOWED for layer in range(arch.n_layers)]
    size = {} if arch.sliding_window is None else {"sliding_window": arch.sliding_window}
    return {"layer_types": types, **size}


def read_switched_windows(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Windows that a key of their own switches on."""
    if hf.get("use_sliding_window"):
        return read_windows(hf)
    if hf.get("sliding_window") and _WINDOWED in _list(hf, "layer_types"):
        raise ValueError(
            f"use_sliding_window is false in the HF config, but layer_types has {_WINDOWED}: set it to true, "
            f"or every layer to {_FULL}."
        )
    return {}


def write_switched_windows(arch: Architecture) -> dict[str, Any]:
    return {**write_windows(arch), "use_sliding_window": arch.sliding_window is not None}


def write_qwen_windows(arch: Architecture) -> dict[str, Any]:
    """With the number of leading layers without a window, by which older versions know the others."""
    said = write_switched_windows(arch)
    return {**said, "max_window_layers": [*said["layer_types"], _WINDOWED].index(_WINDOWED)}


def read_rotated_layers(hf: Mapping[str, Any]) -> dict[str, Any]:
    return {"rope_layers": tuple(map(bool, _list(hf, "no_rope_layers")))}


def write_rotated_layers(arch: Architecture) -> dict[str, Any]:
    return {"no_rope_layers": [int(arch.rotates(layer)) for layer in range(arch.n_layers)]}


def _list(hf: Mapping[str, Any], key: str) -> list[Any]:
    """A list with one value a layer.

    Raises:
        ValueError: when it is something else.
    """
    values, layers = hf.get(key) or [], hf.get("num_hidden_layers")
    if not isinstance(values, list) or len(values) != layers:
        found = f"{len(values)} values" if isinstance(values, list) else repr(values)
        raise ValueError(f"{key} is {found} in the HF config; expected one for each of {layers} layers.")
    return values


def check_neox_bias(hf: Mapping[str, Any]) -> dict[str, Any]:
    if not hf.get("attention_bias", True):
        raise ValueError(
            "attention_bias is false in the HF config: GPT-NeoX without biases is not supported."
        )
    return {}


def write_olmo3_rope(arch: Architecture) -> dict[str, Any]:
    """Both spellings: from the older one transformers 5 takes a base of 500000 for layers with a window."""
    base = {"rope_theta": arch.rope_theta}
    full = {**(arch.rope_scaling or {"rope_type": "default"}), **base}
    return {"rope_parameters": {_FULL: full, _WINDOWED: {"rope_type": "default", **base}}}


def write_local_rope(arch: Architecture) -> dict[str, Any]:
    return {} if arch.local_rope_theta is None else {"rope_local_base_freq": arch.local_rope_theta}


def write_olmo2_scaling(arch: Architecture) -> dict[str, Any]:
    """Under the key `type`, which alone its class accepts."""
    scaling = arch.rope_scaling
    if scaling is None:
        return {}
    return {"rope_scaling": {"type" if key == "rope_type" else key: scaling[key] for key in scaling}}


def write_longrope(arch: Architecture) -> dict[str, Any]:
    """Under the key `type`, and with the trained length at the top."""
    if arch.rope_scaling is None:
        return {}
    scaling = dict(arch.rope_scaling)
    trained = scaling.pop("original_max_position_embeddings", None)
    said = {"rope_scaling": {"type": scaling.pop("rope_type"), **scaling}}
    return said if trained is None else {**said, "original_max_position_embeddings": trained}


def write_multiplier(arch: Architecture) -> dict[str, Any]:
    return {"attention_multiplier": arch.attention_multiplier or arch.head_dim**-0.5}


def read_query_scalar(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Gemma divides scores by the root of a number."""
    if hf.get("use_bidirectional_attention"):
        raise ValueError(
            "use_bidirectional_attention is true in the HF config: an encoder is not supported, only causal "
            "language models are."
        )
    scalar = hf.get("query_pre_attn_scalar")
    if not isinstance(scalar, int | float) or not scalar > 0:
        raise ValueError(f"query_pre_attn_scalar is {scalar!r} in the HF config; expected a number above 0.")
    return {"attention_multiplier": scalar**-0.5}


def write_query_scalar(arch: Architecture) -> dict[str, Any]:
    if arch.attention_multiplier is None:
        return {"query_pre_attn_scalar": arch.head_dim}
    return {"query_pre_attn_scalar": _tidy(arch.attention_multiplier**-2)}


def check_no_score_cap(hf: Mapping[str, Any]) -> dict[str, Any]:
    if hf.get("attn_logit_softcapping") is not None:
        raise ValueError(
            f"attn_logit_softcapping is {hf['attn_logit_softcapping']} in the HF config, which transformers "
            "ignores in Gemma 3: what the model computes is not certain. Set it to null."
        )
    return {}


def _tidy(value: float) -> float:
    """`value`, or the whole number that it is but for rounding."""
    return round(value) if abs(value - round(value)) < 1e-9 * value else value


def read_only_attention(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Granite 4: layers of one sort, without experts, that all rotate or all do not."""
    if hf.get("num_local_experts"):
        raise ValueError(
            f"num_local_experts is {hf['num_local_experts']} in the HF config: a mixture of experts cannot "
            "be pruned; the dense models of granitemoehybrid, with 0 experts, can."
        )
    types = _list(hf, "layer_types")
    if other := sorted({str(kind) for kind in types} - {"attention", _FULL}):
        raise ValueError(
            f"layer_types has {', '.join(other)} in the HF config: hybrid models are not supported; the "
            "models of granitemoehybrid whose layers are all attention are."
        )
    embedding = hf.get("position_embedding_type")
    if embedding not in ("rope", "nope", None):
        raise ValueError(
            f"position_embedding_type is {embedding!r} in the HF config; supported: rope and nope."
        )
    return {"rope_layers": (embedding == "rope",) * len(types)}


def write_only_attention(arch: Architecture) -> dict[str, Any]:
    """With sizes of the state-space layers, which do not exist, that fit any hidden size."""
    return {
        "num_local_experts": 0,
        "layer_types": ["attention"] * arch.n_layers,
        "position_embedding_type": "rope" if arch.rotates(0) else "nope",
        "intermediate_size": arch.intermediate_size,
        "mamba_n_heads": 1,
        "mamba_d_head": "auto",
    }
