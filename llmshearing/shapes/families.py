"""Model families: one table, and conversions between HF config, `model` section and `Architecture`.

A new LLaMA-like family is one row in `FAMILIES`, when its weights have LLaMA's names.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING

from llmshearing.config import ModelConfig, TargetConfig
from llmshearing.shapes.architecture import MAX_LAYERS, Architecture
from llmshearing.shapes.rope_config import older_spelling, plain_scaling, read_rope


@dataclass(frozen=True)
class Family:
    """How one HF `model_type` maps to an `Architecture`.

    `hf_class` is its class in `transformers`; `keys` maps fields of `Architecture` to keys of the HF
    config; `fixed` are fields with one value in the family; `adjust` reads what no single key says.
    """

    hf_class: str
    keys: Mapping[str, str]
    fixed: Mapping[str, Any]
    adjust: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda hf: {}


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


_ROPE = ("rope_theta", "rope_scaling", "rotary_pct")
_ROPE_KEYS = (*_ROPE, "rope_parameters", "rotary_emb_base", "partial_rotary_factor")


def _one_attention_bias(hf: Mapping[str, Any]) -> dict[str, Any]:
    bias = bool(hf.get("attention_bias", False))
    return {"qkv_bias": bias, "out_bias": bias}


def _qwen_window(hf: Mapping[str, Any]) -> dict[str, Any]:
    if hf.get("use_sliding_window"):
        raise ValueError(
            "use_sliding_window is true in the HF config: a window in some layers only is not supported; "
            "models whose layers all share one window (Mistral) are."
        )
    return {}


FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaForCausalLM", {**_LLAMA_KEYS, "mlp_bias": "mlp_bias"}, {}, _one_attention_bias),
    "mistral": Family("MistralForCausalLM", {**_LLAMA_KEYS, "sliding_window": "sliding_window"}, {}),
    "qwen2": Family("Qwen2ForCausalLM", _LLAMA_KEYS, {"qkv_bias": True}, _qwen_window),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        _LLAMA_KEYS,
        {"qk_norm": True},
        lambda hf: {**_one_attention_bias(hf), **_qwen_window(hf)},
    ),
    "gpt_neox": Family(
        "GPTNeoXForCausalLM",
        _NEOX_KEYS,
        {"qkv_bias": True, "out_bias": True, "mlp_bias": True},
        lambda hf: _neox_bias(hf),
    ),
}


def _neox_bias(hf: Mapping[str, Any]) -> dict[str, Any]:
    if not hf.get("attention_bias", True):
        raise ValueError(
            "attention_bias is false in the HF config: GPT-NeoX without biases is not supported."
        )
    return {}


# ------------------------------------------------------------------ HF config


def architecture_from_hf(hf: Mapping[str, Any]) -> Architecture:
    """The architecture that an HF config (as a dict) describes.

    Raises:
        ValueError: for a family, rotary embedding or option that is not supported.
    """
    name = str(hf.get("model_type"))
    if name not in FAMILIES:
        raise ValueError(
            f"model_type is {name!r}, which is not supported; supported: {', '.join(FAMILIES)}. "
            "Mixture-of-experts and encoder-decoder models cannot be pruned."
        )
    if hf.get("quantization_config"):
        raise ValueError("The checkpoint is quantized; pruning needs the weights in fp32, bf16 or fp16.")
    layers = hf.get("num_hidden_layers")
    if isinstance(layers, int) and layers > MAX_LAYERS:  # transformers makes lists of that length
        raise ValueError(f"num_hidden_layers is {layers} in the HF config; expected at most {MAX_LAYERS}.")
    family, rope = FAMILIES[name], read_rope(hf)
    hf = _with_defaults(hf)
    values = {
        ours: hf[theirs]
        for ours, theirs in family.keys.items()
        if hf.get(theirs) is not None and ours not in _ROPE
    }
    values |= read_rope(_class_defaults(name)) | rope | dict(family.fixed) | family.adjust(hf)
    for ours in ("d_model", "n_heads"):
        if not isinstance(values.get(ours), int) or values[ours] < 1:
            key = family.keys[ours]
            raise ValueError(f"{key} is {hf.get(key)!r} in the HF config; expected a whole number above 0.")
    values.setdefault("n_kv_heads", values["n_heads"])
    values.setdefault("head_dim", values["d_model"] // values["n_heads"])
    return Architecture(family=name, **values)


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
    if arch.family in ("llama", "qwen3"):
        hf["attention_bias"] = arch.qkv_bias
    if "layer_types" in hf:
        hf.pop("layer_types")
        hf.pop("max_window_layers", None)
    understood = architecture_from_hf(hf)
    lost = [f.name for f in fields(arch) if getattr(arch, f.name) != getattr(understood, f.name)]
    if lost:
        raise ValueError(
            f"An HF config of family {arch.family} cannot express "
            + ", ".join(f"{name}={getattr(arch, name)}" for name in lost)
            + "; choose another model.family, or sizes that fit together."
        )
    return hf


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


def _with_defaults(hf: Mapping[str, Any]) -> dict[str, Any]:
    """`hf` with the defaults of transformers for missing keys, except those of rotary embeddings.

    Token ids are not asked about: nothing here depends on them, and versions differ in what they accept.
    """
    asked = {k: v for k, v in hf.items() if k not in _ROPE_KEYS and not k.endswith("_token_id")}
    given, heads, size = dict(asked), hf.get("num_attention_heads"), hf.get("head_dim")
    if "hidden_size" in asked and isinstance(heads, int) and isinstance(size, int):
        given["hidden_size"] = heads * size  # transformers 5 rejects a width that the heads do not divide
    try:
        return CONFIG_MAPPING[hf["model_type"]](**copy.deepcopy(given)).to_dict() | asked
    except (KeyError, TypeError, ValueError, ArithmeticError, StrictDataclassError) as error:
        raise ValueError(f"The HF config is inconsistent: {error}") from error


def _class_defaults(model_type: str) -> dict[str, Any]:
    """The default of transformers for the rotary embedding."""
    defaults = CONFIG_MAPPING[model_type]().to_dict()
    return {key: value for key, value in defaults.items() if key in _ROPE_KEYS}


# ------------------------------------------------------------- `model` section

_CONFIG_KEYS = {field.name: field.name for field in fields(Architecture)} | {
    "norm_eps": "rms_norm_eps",
    "parallel_residual": "use_parallel_residual",
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
    if values["family"] == "gpt_neox":
        values = {"parallel_residual": True, "rotary_pct": 0.25, "activation": "gelu"} | values
    return Architecture(**{**dict(FAMILIES[values["family"]].fixed), **values})


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
    return max_seq_len < arch.max_seq_len and kind not in ("dynamic", "yarn")


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
