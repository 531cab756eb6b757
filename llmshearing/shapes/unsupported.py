"""HF configs that look like those of a supported family and mean another model: named, with the reason."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import transformers

_EXPERTS = "a mixture of experts, which cannot be pruned"
_VISION = "a model of images and text"
_HYBRID = "a hybrid of attention and other layers"
_NEARLY = {
    "mixtral": _EXPERTS,
    "qwen2_moe": _EXPERTS,
    "qwen3_moe": _EXPERTS,
    "qwen3_next": _HYBRID,
    "qwen2_vl": _VISION,
    "qwen2_5_vl": _VISION,
    "qwen3_vl": _VISION,
    "olmoe": _EXPERTS,
    "olmo": "the first OLMo, whose norms have no weights",
    "phi": "Phi 1 and 2, which have layer norms and two matrices in an MLP",
    "phi3_v": _VISION,
    "phi4_multimodal": "a model of images, speech and text",
    "phimoe": _EXPERTS,
    "granitemoe": _EXPERTS,
    "granitemoeshared": _EXPERTS,
    "gemma": "the first Gemma",
    "gemma3": f"{_VISION}; its text model alone, of model_type gemma3_text, is supported",
    "gemma3n": _VISION,
    "mistral3": _VISION,
    "pixtral": _VISION,
    "mllama": _VISION,
    "llama4": f"{_EXPERTS}, and {_VISION}",
    "llama4_text": _EXPERTS,
    "smolvlm": _VISION,
    "idefics3": _VISION,
}
# Words in the names of keys that say what a model computes, and in those that do not.
_COMPUTES = re.compile(
    r"rope|rotary|norm|att(entio)?n|window|softcap|multiplier|scal|expert|moe|mlp|bias|residual|parallel"
    r"|position|alibi|embed|layer_type|act(ivation)?$|head|clip"
)
_OTHERWISE = re.compile(
    r"^_|drop|initializer|implementation|token|aux_loss|output_|cache|gradient|quantiz|fused"
)


def reject_family(hf: Mapping[str, Any], supported: Iterable[str]) -> None:
    """Reject the config of a family that is not supported, and what is wrapped around one.

    Raises:
        ValueError: naming what it is and what is supported.
    """
    name, known = hf.get("model_type"), list(supported)
    if name not in known:
        what = f": {_NEARLY[name]}" if isinstance(name, str) and name in _NEARLY else ""
        raise ValueError(
            f"model_type is {str(name)!r}, which is not supported{what}; supported: {', '.join(known)}. "
            "Mixture-of-experts and encoder-decoder models cannot be pruned."
        )
    if wrapped := [key for key in ("vision_config", "audio_config", "text_config") if hf.get(key)]:
        raise ValueError(f"The HF config of {name} has {wrapped[0]}: it is {_VISION} or speech, not of text.")


def reject_unknown(hf: Mapping[str, Any], known: Collection[str]) -> None:
    """Reject keys that the installed transformers does not know and that may change what a model computes.

    Of a config that an earlier or the same version wrote, such a key does nothing in transformers either.

    Raises:
        ValueError: naming the first.
    """
    written = str(hf.get("transformers_version") or "")
    if written and _version(written) <= _version(transformers.__version__):
        return
    for key, value in hf.items():
        if key in known or not value or _OTHERWISE.search(key) or not _COMPUTES.search(key):
            continue
        by = f"was written by transformers {written}" if written else "does not say which version wrote it"
        raise ValueError(
            f"The HF config {by}, and its {key} is {str(value)[:60]}, which transformers "
            f"{transformers.__version__} does not know for {hf.get('model_type')}: it may change what the "
            "model computes. Install the version that wrote it, or remove the key if it changes nothing."
        )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])
