"""Model families: one table, and conversions between HF config, `model` section and `Architecture`.

A new LLaMA-like family is one row in `FAMILIES`, when its weights have LLaMA's names; what no single key of
its config says is read by one function of the row and said by another.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

from transformers import CONFIG_MAPPING

from llmshearing.config import ModelConfig, TargetConfig
from llmshearing.shapes.architecture import MAX_LAYERS, Architecture
from llmshearing.shapes.rope_config import older_spelling, plain_scaling, read_rope
from llmshearing.shapes.unsupported import reject_family, reject_unknown


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


_ROPE = ("rope_theta", "rope_scaling", "rotary_pct", "local_rope_theta")
_ROPE_KEYS = (
    *_ROPE,
    "rope_parameters",
    "rotary_emb_base",
    "partial_rotary_factor",
    "rope_local_base_freq",
)
_KNOWN = (
    "head_dim",
    "layers_block_type",
    "sliding_window_pattern",
    "original_max_position_embeddings",
)  # by some versions, of every family
_OLDER_LAYERS = {"full_attention": "attention", "linear_attention": "mamba"}
_WINDOWED, _FULL = "sliding_attention", "full_attention"


# --------------------------------------------------------- what no single key says


def _one_attention_bias(hf: Mapping[str, Any]) -> dict[str, Any]:
    bias = bool(hf.get("attention_bias", False))
    return {"qkv_bias": bias, "out_bias": bias}


def _say_attention_bias(arch: Architecture) -> dict[str, Any]:
    return {"attention_bias": arch.qkv_bias}


def _windows(hf: Mapping[str, Any]) -> dict[str, Any]:
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


def _say_windows(arch: Architecture) -> dict[str, Any]:
    types = [_FULL if arch.window(layer) is None else _WINDOWED for layer in range(arch.n_layers)]
    size = {} if arch.sliding_window is None else {"sliding_window": arch.sliding_window}
    return {"layer_types": types, **size}


def _switched_windows(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Windows that a key of their own switches on."""
    if hf.get("use_sliding_window"):
        return _windows(hf)
    if hf.get("sliding_window") and _WINDOWED in _list(hf, "layer_types"):
        raise ValueError(
            f"use_sliding_window is false in the HF config, but layer_types has {_WINDOWED}: set it to true, "
            f"or every layer to {_FULL}."
        )
    return {}


def _say_switched_windows(arch: Architecture) -> dict[str, Any]:
    return {**_say_windows(arch), "use_sliding_window": arch.sliding_window is not None}


def _say_qwen_windows(arch: Architecture) -> dict[str, Any]:
    """With the number of leading layers without a window, by which older versions know the others."""
    said = _say_switched_windows(arch)
    return {**said, "max_window_layers": [*said["layer_types"], _WINDOWED].index(_WINDOWED)}


def _rotated_layers(hf: Mapping[str, Any]) -> dict[str, Any]:
    return {"rope_layers": tuple(map(bool, _list(hf, "no_rope_layers")))}


def _say_rotated_layers(arch: Architecture) -> dict[str, Any]:
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


def _neox_bias(hf: Mapping[str, Any]) -> dict[str, Any]:
    if not hf.get("attention_bias", True):
        raise ValueError(
            "attention_bias is false in the HF config: GPT-NeoX without biases is not supported."
        )
    return {}


def _olmo3_rope(arch: Architecture) -> dict[str, Any]:
    """Both spellings: from the older one transformers 5 takes a base of 500000 for layers with a window."""
    base = {"rope_theta": arch.rope_theta}
    full = {**(arch.rope_scaling or {"rope_type": "default"}), **base}
    return {"rope_parameters": {_FULL: full, _WINDOWED: {"rope_type": "default", **base}}}


def _say_local_rope(arch: Architecture) -> dict[str, Any]:
    return {} if arch.local_rope_theta is None else {"rope_local_base_freq": arch.local_rope_theta}


def _say_olmo2_scaling(arch: Architecture) -> dict[str, Any]:
    """Under the key `type`, which alone its class accepts."""
    scaling = arch.rope_scaling
    if scaling is None:
        return {}
    return {"rope_scaling": {"type" if key == "rope_type" else key: scaling[key] for key in scaling}}


def _say_longrope(arch: Architecture) -> dict[str, Any]:
    """Under the key `type`, and with the trained length at the top."""
    if arch.rope_scaling is None:
        return {}
    scaling = dict(arch.rope_scaling)
    trained = scaling.pop("original_max_position_embeddings", None)
    said = {"rope_scaling": {"type": scaling.pop("rope_type"), **scaling}}
    return said if trained is None else {**said, "original_max_position_embeddings": trained}


def _say_multiplier(arch: Architecture) -> dict[str, Any]:
    return {"attention_multiplier": arch.attention_multiplier or arch.head_dim**-0.5}


def _query_scalar(hf: Mapping[str, Any]) -> dict[str, Any]:
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


def _say_query_scalar(arch: Architecture) -> dict[str, Any]:
    if arch.attention_multiplier is None:
        return {"query_pre_attn_scalar": arch.head_dim}
    return {"query_pre_attn_scalar": _tidy(arch.attention_multiplier**-2)}


def _no_score_cap(hf: Mapping[str, Any]) -> dict[str, Any]:
    if hf.get("attn_logit_softcapping") is not None:
        raise ValueError(
            f"attn_logit_softcapping is {hf['attn_logit_softcapping']} in the HF config, which transformers "
            "ignores in Gemma 3: what the model computes is not certain. Set it to null."
        )
    return {}


def _tidy(value: float) -> float:
    """`value`, or the whole number that it is but for rounding."""
    return round(value) if abs(value - round(value)) < 1e-9 * value else value


def _only_attention(hf: Mapping[str, Any]) -> dict[str, Any]:
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


def _say_only_attention(arch: Architecture) -> dict[str, Any]:
    """With sizes of the state-space layers, which do not exist, that fit any hidden size."""
    return {
        "num_local_experts": 0,
        "layer_types": ["attention"] * arch.n_layers,
        "position_embedding_type": "rope" if arch.rotates(0) else "nope",
        "intermediate_size": arch.intermediate_size,
        "mamba_n_heads": 1,
        "mamba_d_head": "auto",
    }


def _without(keys: Mapping[str, str], name: str) -> dict[str, str]:
    return {ours: theirs for ours, theirs in keys.items() if ours != name}


def _all(*parts: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    """What several functions read or say."""
    return lambda given: {key: value for part in parts for key, value in part(given).items()}


# ----------------------------------------------------------------------- the table

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

FAMILIES: dict[str, Family] = {
    "llama": Family(
        "LlamaForCausalLM", {**_LLAMA_KEYS, **_MLP_BIAS}, {}, _one_attention_bias, _say_attention_bias
    ),
    "mistral": Family("MistralForCausalLM", {**_LLAMA_KEYS, "sliding_window": "sliding_window"}, {}),
    "qwen2": Family(
        "Qwen2ForCausalLM", _LLAMA_KEYS, {"qkv_bias": True}, _switched_windows, _say_qwen_windows
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        _LLAMA_KEYS,
        {"qk_norm": True},
        _all(_one_attention_bias, _switched_windows),
        _all(_say_attention_bias, _say_qwen_windows),
    ),
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        {**_LLAMA_KEYS, **_MLP_BIAS},
        {},
        _all(_one_attention_bias, _switched_windows, _rotated_layers),
        _all(_say_attention_bias, _say_switched_windows, _say_rotated_layers),
    ),
    "olmo2": Family(
        "Olmo2ForCausalLM",
        _LLAMA_KEYS,
        {"qk_norm": True},
        _one_attention_bias,
        _all(_say_attention_bias, _say_olmo2_scaling),
    ),
    "olmo3": Family(
        "Olmo3ForCausalLM",
        _LLAMA_KEYS,
        {"qk_norm": True},
        _all(_one_attention_bias, _windows),
        _all(_say_attention_bias, _say_windows, _olmo3_rope),
        local_rope="rope_theta",
    ),
    "phi3": Family(
        "Phi3ForCausalLM",
        {**_LLAMA_KEYS, "rotary_pct": "partial_rotary_factor", "sliding_window": "sliding_window"},
        {},
        express=_say_longrope,
    ),
    "granite": Family(
        "GraniteForCausalLM",
        {**_GRANITE_KEYS, **_MLP_BIAS},
        {},
        _one_attention_bias,
        _all(_say_attention_bias, _say_multiplier),
    ),
    "granitemoehybrid": Family(
        "GraniteMoeHybridForCausalLM",
        {**_without(_GRANITE_KEYS, "head_dim"), "intermediate_size": "shared_intermediate_size"},
        {},
        _all(_one_attention_bias, _only_attention),
        _all(_say_attention_bias, _say_multiplier, _say_only_attention),
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        _GEMMA_KEYS,
        {},
        _all(_one_attention_bias, _windows, _query_scalar),
        _all(_say_attention_bias, _say_windows, _say_query_scalar),
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        _without(_GEMMA_KEYS, "attention_softcap"),
        {"qk_norm": True},
        _all(_one_attention_bias, _windows, _query_scalar, _no_score_cap),
        _all(_say_attention_bias, _say_windows, _say_query_scalar, _say_local_rope),
        local_rope="rope_local_base_freq",
    ),
    "gpt_neox": Family(
        "GPTNeoXForCausalLM",
        _NEOX_KEYS,
        {"qkv_bias": True, "out_bias": True, "mlp_bias": True},
        _neox_bias,
    ),
}


# ------------------------------------------------------------------ HF config


def architecture_from_hf(hf: Mapping[str, Any]) -> Architecture:
    """The architecture that an HF config (as a dict) describes.

    Raises:
        ValueError: for a family, rotary embedding or option that is not supported.
    """
    reject_family(hf, FAMILIES)
    name = str(hf["model_type"])
    if hf.get("quantization_config"):
        raise ValueError("The checkpoint is quantized; pruning needs the weights in fp32, bf16 or fp16.")
    check_layers(hf)
    family, given = FAMILIES[name], hf
    reject_unknown(hf, {*_defaults(name), *_ROPE_KEYS, *_KNOWN})
    hf = _with_defaults(hf)
    rope = _rope(name, given, hf)
    values = {
        ours: hf[theirs]
        for ours, theirs in family.keys.items()
        if hf.get(theirs) is not None and ours not in _ROPE
    }
    values |= rope | dict(family.fixed) | family.adjust(hf)
    for ours in ("d_model", "n_heads"):
        if not isinstance(values.get(ours), int) or values[ours] < 1:
            key = family.keys[ours]
            raise ValueError(f"{key} is {hf.get(key)!r} in the HF config; expected a whole number above 0.")
    if missing := [family.keys[ours] for ours in _REQUIRED if ours not in values]:
        raise ValueError(f"{', '.join(missing)}: missing in the HF config; expected whole numbers above 0.")
    values.setdefault("n_kv_heads", values["n_heads"])
    values.setdefault("head_dim", values["d_model"] // values["n_heads"])
    return Architecture(family=name, **values)


def check_layers(hf: Mapping[str, Any]) -> None:
    """Check how many layers an HF config announces, of which transformers makes lists.

    Raises:
        ValueError: when they are too many.
    """
    layers = hf.get("num_hidden_layers")
    if isinstance(layers, int) and layers > MAX_LAYERS:
        raise ValueError(f"num_hidden_layers is {layers} in the HF config; expected at most {MAX_LAYERS}.")


def architecture_to_hf(arch: Architecture, base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The HF config of `arch` as a dict: `base` if it describes `arch`, else with every key that `arch` sets.

    Its rotary embedding is spelt as transformers 4 does, which transformers 5 reads too.

    Raises:
        ValueError: when the family's config cannot express `arch`.
    """
    if base and "rope_parameters" not in base and architecture_from_hf(base) == arch:
        return dict(base)
    family = FAMILIES[arch.family]
    hf = {"architectures": [hf_class_name(arch.family)], **older_spelling(base or {})}
    hf["model_type"] = arch.family
    hf.update({theirs: getattr(arch, ours) for ours, theirs in family.keys.items()})
    hf.update(family.express(arch))
    hf.update(_tokens_beyond(arch, hf))
    understood = architecture_from_hf(hf)
    lost = [f.name for f in fields(arch) if getattr(arch, f.name) != getattr(understood, f.name)]
    if lost:
        raise ValueError(
            f"An HF config of family {arch.family} cannot express "
            + ", ".join(f"{name}={getattr(arch, name)}" for name in lost)
            + "; choose another model.family, or sizes that fit together."
        )
    return hf


def _tokens_beyond(arch: Architecture, hf: Mapping[str, Any]) -> dict[str, None]:
    """None for special tokens of the class, not the config, beyond the vocabulary: it would not load."""
    defaults = _defaults(arch.family)
    keys = ("pad_token_id", "bos_token_id", "eos_token_id")
    return {key: None for key in keys if key not in hf and (defaults.get(key) or 0) >= arch.vocab_size}


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


def _rope(name: str, given: Mapping[str, Any], filled: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary embedding of an HF config `given`, which with defaults for its other keys is `filled`."""
    local = FAMILIES[name].local_rope
    if name == "phi3":
        given = _phi_spelling(given, filled)
    rope = read_rope(_class_defaults(name), local) | read_rope(given, local)
    if (rope.get("rope_scaling") or {}).get("rope_type") == "longrope" and name != "phi3":
        raise ValueError(f"rope_scaling has type 'longrope', which is supported for phi3 alone, not {name}.")
    return rope


def _phi_spelling(given: Mapping[str, Any], filled: Mapping[str, Any]) -> dict[str, Any]:
    """Phi-3's longrope by its present name, with the trained length that the class has by default."""
    older = {"su": "longrope", "yarn": "longrope"}
    renamed = {}
    for key in ("rope_scaling", "rope_parameters"):
        if isinstance(given.get(key), Mapping):
            renamed[key] = {
                k: older.get(str(v), v) if k in ("type", "rope_type") else v for k, v in given[key].items()
            }
    trained = "original_max_position_embeddings"
    return {**given, **renamed, trained: filled.get(trained)}


def _granite_4_spelling(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Types of layers by the names that both versions know, and sizes of other layers that fit any width."""
    said = {key: value for key, value in hf.items() if key != "time_step_limit"}
    if isinstance(hf.get("layer_types"), list):
        said["layer_types"] = [_OLDER_LAYERS.get(kind, kind) for kind in map(str, hf["layer_types"])]
    return {**said, "mamba_n_heads": 1, "mamba_d_head": "auto"}


def _with_defaults(hf: Mapping[str, Any]) -> dict[str, Any]:
    """`hf` with the defaults of transformers for missing keys, except those of rotary embeddings.

    Token ids are not asked about: nothing here depends on them, and versions differ in what they accept.
    """
    asked = {k: v for k, v in hf.items() if k not in _ROPE_KEYS and not k.endswith("_token_id")}
    if hf["model_type"] == "granitemoehybrid":
        asked = _granite_4_spelling(asked)
    given, heads, size = dict(asked), hf.get("num_attention_heads"), hf.get("head_dim")
    if "hidden_size" in asked and isinstance(heads, int) and isinstance(size, int):
        given["hidden_size"] = heads * size  # transformers 5 rejects a width that the heads do not divide
    try:
        filled = CONFIG_MAPPING[hf["model_type"]](**copy.deepcopy(given)).to_dict()
    except Exception as error:  # its classes raise anything for values that they do not expect
        raise ValueError(f"The HF config is inconsistent: {error}") from error
    by_layer = {key for key, value in asked.items() if value is None and isinstance(filled.get(key), list)}
    return filled | {key: value for key, value in asked.items() if key not in by_layer}


def _class_defaults(model_type: str) -> dict[str, Any]:
    """The default of transformers for the rotary embedding."""
    return {key: value for key, value in _defaults(model_type).items() if key in _ROPE_KEYS}


@cache
def _defaults(model_type: str) -> dict[str, Any]:
    return CONFIG_MAPPING[model_type]().to_dict()


# ------------------------------------------------------------- `model` section

_CONFIG_KEYS = {field.name: field.name for field in fields(Architecture)} | {
    "norm_eps": "rms_norm_eps",
    "parallel_residual": "use_parallel_residual",
}
_UNSAID: dict[str, dict[str, Any]] = {  # what a family has where a `model` section does not say
    "gpt_neox": {"parallel_residual": True, "rotary_pct": 0.25, "activation": "gelu"},
    "gemma2": {"activation": "gelu_pytorch_tanh"},
    "gemma3_text": {"activation": "gelu_pytorch_tanh"},
}
_REQUIRED = ("d_model", "n_heads", "n_layers", "intermediate_size", "vocab_size", "max_seq_len")


def architecture_of(cfg: ModelConfig) -> Architecture:
    """The architecture of a `model` section whose sizes are all given.

    Raises:
        ValueError: when a size is missing or sizes contradict each other.
    """
    missing = [name for name in _REQUIRED if getattr(cfg, name) is None]
    if missing:
        raise ValueError(
            f"model.{missing[0]} is not set; without a checkpoint that holds it (model.path), set "
            + ", ".join(f"model.{name}" for name in missing)
            + "."
        )
    values = {a: getattr(cfg, c) for a, c in _CONFIG_KEYS.items() if getattr(cfg, c) is not None}
    if cfg.layer_norm_eps is not None:
        values["norm_eps"] = cfg.layer_norm_eps
    values.setdefault("family", _family_of_name(cfg.name))
    if values["family"] not in FAMILIES:
        raise ValueError(f"model.family is {values['family']!r}; supported: {', '.join(FAMILIES)}.")
    if "head_dim" not in values and cfg.d_model % cfg.n_heads:  # type: ignore[operator]
        raise ValueError(
            f"model.d_model is {cfg.d_model} and model.n_heads is {cfg.n_heads}; expected d_model to be a "
            "multiple of n_heads. Change one of them, or set model.head_dim."
        )
    values.setdefault("n_kv_heads", cfg.n_heads)
    values.setdefault("head_dim", cfg.d_model // cfg.n_heads)  # type: ignore[operator]
    values["rope_scaling"] = plain_scaling(values.get("rope_scaling"))
    return Architecture(
        **{**_UNSAID.get(values["family"], {}), **dict(FAMILIES[values["family"]].fixed), **values}
    )


def complete(cfg: ModelConfig, arch: Architecture, source: str) -> ModelConfig:
    """`cfg` with every size it leaves out taken from a checkpoint's architecture.

    Args:
        arch: what the checkpoint at `source` holds.

    Raises:
        ValueError: when sizes in `cfg` differ from the checkpoint's, one a line.
    """
    filled, problems = {}, []
    for ours, key in _CONFIG_KEYS.items():
        held, given = getattr(arch, ours), getattr(cfg, key)
        held = list(held) if isinstance(held, tuple) else held
        if given is not None and given != held and not (ours == "max_seq_len" and _may_shorten(arch, given)):
            problems.append(
                f"model.{key} is {given}, but the checkpoint {source} has {held}; "
                f"set model.{key}={held} or leave it out."
            )
        filled[key] = held
    if problems:
        raise ValueError("\n".join(problems))
    return replace(cfg, layer_norm_eps=None, **filled)


def _may_shorten(arch: Architecture, max_seq_len: int) -> bool:
    """Whether a model may be trained on shorter sequences: not where its rotary embedding depends on them."""
    kind = arch.rope_scaling["rope_type"] if arch.rope_scaling else "default"
    return max_seq_len < arch.max_seq_len and kind not in ("dynamic", "yarn", "longrope")


def target_of(source: Architecture, target: TargetConfig | None) -> Architecture | None:
    """The architecture to prune to, None without a target; sizes that are not set stay those of `source`.

    Raises:
        ValueError: when the sizes contradict each other.
    """
    if target is None:
        return None
    given = {key: size for key, size in vars(target).items() if size is not None}
    if small := [key for key, size in given.items() if size < 1]:
        raise ValueError(f"target_model.{small[0]} is {given[small[0]]}; expected at least 1.")
    n_heads = given.get("n_heads", source.n_heads)
    n_kv_heads = given.get("n_kv_heads", n_heads if source.group_size == 1 else source.n_kv_heads)
    if n_heads % n_kv_heads:
        raise ValueError(
            f"target_model.n_heads is {n_heads}, which {n_kv_heads} KV heads do not divide; every KV head "
            f"must serve the same number of query heads. The source has {source.n_heads} query and "
            f"{source.n_kv_heads} KV heads: choose n_heads a multiple of target_model.n_kv_heads."
        )
    return source.resized(**{**given, "n_heads": n_heads, "n_kv_heads": n_kv_heads})


def _family_of_name(name: str) -> str:
    return "gpt_neox" if "pythia" in name else "llama"
