"""Conversion between HF configs and `Architecture`."""

import copy
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any

from transformers import CONFIG_MAPPING

from llmshearing.shapes.architecture import MAX_LAYERS, Architecture
from llmshearing.shapes.families import FAMILIES, REQUIRED, hf_class_name
from llmshearing.shapes.rope_config import older_spelling, read_rope
from llmshearing.shapes.unsupported import reject_family, reject_unknown

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
    if missing := [family.keys[ours] for ours in REQUIRED if ours not in values]:
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
