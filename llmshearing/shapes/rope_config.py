"""Rotary embeddings in HF configs: both spellings read, whichever version of transformers is installed.

transformers 4 writes `rope_theta` and `rope_scaling` (GPT-NeoX: `rotary_emb_base`, `rotary_pct`) at the top
of a config; transformers 5 writes one `rope_parameters` that holds base, scaling and rotated part. The older
spelling is written, which both versions read.

Where layers with a window rotate in their own way, the newer spelling has one mapping for each type of layer,
and the older one a second base under a name of the family.
"""

from collections.abc import Mapping
from typing import Any

# The keys of each type of scaling: required, then optional.
_NEEDED = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
}
_OPTIONAL = {
    "dynamic": ("original_max_position_embeddings",),
    "yarn": (
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    ),
}
ROPE_TYPES = tuple(_NEEDED)
_BASE = ("rope_theta", "rotary_emb_base")
_PART = ("partial_rotary_factor", "rotary_pct")
_LAYER_TYPES = ("full_attention", "sliding_attention")
_LOCAL = "sliding_attention"
_TRAINED = "original_max_position_embeddings"


def read_rope(hf: Mapping[str, Any], local: str | None = None) -> dict[str, Any]:
    """What an HF config has of `rope_theta`, `rope_scaling`, `rotary_pct` and `local_rope_theta`.

    Args:
        local: of a family whose layers with a window rotate in their own way, the key of their base in the
            older spelling.

    Raises:
        ValueError: for an unknown type, key or layout, for contradictory spellings, and for a config of
            transformers 5 without a rotary embedding.
    """
    new = hf.get("rope_parameters") or {}
    inner: Mapping[str, Any] = {}
    if local and isinstance(new, Mapping) and new:
        new, inner = _by_layer_type(new)
    _check_layout(new)
    found = {
        "rope_theta": _agreed(hf, new, _BASE),
        "rotary_pct": _agreed(hf, new, _PART),
        "rope_scaling": _scaling(hf, new),
    }
    if all(value is None for value in found.values()) and not new and _major_version(hf) >= 5:
        raise ValueError(
            f"The HF config was written by transformers {hf['transformers_version']} and has neither "
            "rope_parameters nor rope_theta; expected one of them: a guess could be wrong. Add rope_theta."
        )
    if local:
        places = {f"rope_parameters.{_LOCAL}.rope_theta": inner.get("rope_theta"), local: hf.get(local)}
        found["local_rope_theta"] = _one(places)
    return {key: value for key, value in found.items() if value is not None}


def _by_layer_type(new: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The mappings of layers without and with a window."""
    if set(new) != set(_LAYER_TYPES) or not all(isinstance(value, Mapping) for value in new.values()):
        raise ValueError(
            f"rope_parameters has {', '.join(map(str, new))}; expected the keys "
            f"{' and '.join(_LAYER_TYPES)}, with keys and values below each: layers of this family rotate by "
            "their type."
        )
    inner = new[_LOCAL]
    scaled = plain_scaling({key: value for key, value in inner.items() if key not in _BASE})
    if scaled:
        raise ValueError(
            f"rope_parameters.{_LOCAL} has rope_type {scaled['rope_type']!r}; expected default: layers with "
            "a window rotate without scaling in this family."
        )
    return new["full_attention"], inner


def plain_scaling(scaling: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A scaling under the key `rope_type`; None when it scales nothing.

    Raises:
        ValueError: for an unsupported type, an unknown key or a missing one.
    """
    if not scaling:
        return None
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind not in ROPE_TYPES:
        raise ValueError(f"rope_scaling has type {kind!r}; supported: {', '.join(ROPE_TYPES)}.")
    values = {key: value for key, value in scaling.items() if key not in ("type", "rope_type")}
    known = (*_NEEDED[kind], *_OPTIONAL.get(kind, ()))
    if missing := [key for key in _NEEDED[kind] if values.get(key) is None]:
        raise ValueError(f"rope_scaling of type {kind} lacks {', '.join(missing)}.")
    unknown = [key for key, value in values.items() if key not in known and value is not None]
    if unknown and kind != "default":
        raise ValueError(
            f"rope_scaling of type {kind} has {', '.join(map(str, unknown))}, which is not supported; "
            f"known: {', '.join(known)}."
        )
    kept = {key: value for key, value in values.items() if value is not None}
    return None if kind == "default" else {**kept, "rope_type": kind}


def older_spelling(hf: Mapping[str, Any]) -> dict[str, Any]:
    """A config with its rotary embedding in transformers 4's spelling alone."""
    return {key: value for key, value in hf.items() if key != "rope_parameters"}


def _check_layout(new: Mapping[str, Any]) -> None:
    if not isinstance(new, Mapping):
        raise ValueError(f"rope_parameters is {new!r}; expected keys and values.")
    by_layer = [key for key, value in new.items() if isinstance(value, Mapping) or key in _LAYER_TYPES]
    if by_layer:
        raise ValueError(
            f"rope_parameters differ by type of layer ({', '.join(by_layer)}), which this family is not "
            "known to have; supported are rotary embeddings that all layers share."
        )


def _agreed(hf: Mapping[str, Any], new: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The one value under any of these names, in either spelling; None where none has one."""
    places = {f"rope_parameters.{name}": new.get(name) for name in names} | {n: hf.get(n) for n in names}
    return _one(places)


def _one(places: Mapping[str, Any]) -> Any:
    """The one value that these places give; None where none does."""
    given = {place: value for place, value in places.items() if value is not None}
    first = next(iter(given.values()), None)
    if any(value is not first and value != first for value in given.values()):
        said = " and ".join(f"{place} is {value}" for place, value in given.items())
        raise ValueError(f"The HF config contradicts itself: {said}; keep the right one.")
    return first


def _scaling(hf: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any] | None:
    scaling = hf.get("rope_scaling")
    if not isinstance(scaling, Mapping | None):
        raise ValueError(f"rope_scaling is {scaling!r} in the HF config; expected keys and values.")
    apart = (*_BASE, *_PART)
    inside = {key: value for key, value in new.items() if key not in apart}
    newer = plain_scaling(_with_trained(inside, hf))
    older = plain_scaling(_with_trained(scaling, hf))
    if new and scaling and newer != older:
        raise ValueError(
            f"The HF config contradicts itself: rope_parameters say {newer or 'no scaling'} and rope_scaling "
            f"says {older or 'no scaling'}; keep the right one."
        )
    return newer or older


def _with_trained(scaling: Mapping[str, Any] | None, hf: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """A scaling of type longrope with the trained length, which Phi-3 has at the top of its config."""
    if not scaling or scaling.get("rope_type", scaling.get("type")) != "longrope":
        return scaling or None
    lengths = {f"rope_parameters.{_TRAINED}": scaling.get(_TRAINED), _TRAINED: hf.get(_TRAINED)}
    return {**scaling, _TRAINED: _one(lengths)}


def _major_version(hf: Mapping[str, Any]) -> int:
    first = str(hf.get("transformers_version", "")).partition(".")[0]
    return int(first) if first.isdigit() else 0
