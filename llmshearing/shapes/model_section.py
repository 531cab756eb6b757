"""Conversion of the `model` section of a configuration, and of the target in it, to `Architecture`."""

from dataclasses import fields, replace
from typing import Any

from llmshearing.config import ModelConfig, TargetConfig
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.families import FAMILIES, REQUIRED
from llmshearing.shapes.rope_config import plain_scaling

_CONFIG_KEYS = {field.name: field.name for field in fields(Architecture)} | {
    "norm_eps": "rms_norm_eps",
    "parallel_residual": "use_parallel_residual",
}
_UNSAID: dict[str, dict[str, Any]] = {  # what a family has where a `model` section does not say
    "gpt_neox": {"parallel_residual": True, "rotary_pct": 0.25, "activation": "gelu"},
    "gemma2": {"activation": "gelu_pytorch_tanh"},
    "gemma3_text": {"activation": "gelu_pytorch_tanh"},
}


def architecture_of(cfg: ModelConfig) -> Architecture:
    """The architecture of a `model` section whose sizes are all given.

    Raises:
        ValueError: when a size is missing or sizes contradict each other.
    """
    missing = [name for name in REQUIRED if getattr(cfg, name) is None]
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


def target_of(
    source: Architecture, target: TargetConfig | None, where: str = "target_model."
) -> Architecture | None:
    """The architecture to prune to, None without a target; sizes that are not set stay those of `source`.

    Args:
        where: what stands before the name of a size, for messages.

    Raises:
        ValueError: when the sizes contradict each other.
    """
    if target is None:
        return None
    given = {key: size for key, size in vars(target).items() if size is not None}
    if small := [key for key, size in given.items() if size < 1]:
        raise ValueError(f"{where}{small[0]} is {given[small[0]]}; expected at least 1.")
    n_heads = given.get("n_heads", source.n_heads)
    n_kv_heads = given.get("n_kv_heads", n_heads if source.group_size == 1 else source.n_kv_heads)
    if n_heads % n_kv_heads:
        raise ValueError(_undivided(source, n_heads, n_kv_heads, where))
    return source.resized(**{**given, "n_heads": n_heads, "n_kv_heads": n_kv_heads})


def _undivided(source: Architecture, n_heads: int, n_kv_heads: int, where: str) -> str:
    """What to say of heads that cannot share KV heads evenly, with the numbers of either that could."""

    def fits(heads: int, kv_heads: int) -> bool:
        return heads % kv_heads == 0 and heads // kv_heads <= source.group_size

    found = {
        "n_heads": [
            n for n in range(1, source.n_heads + 1) if n_kv_heads <= source.n_kv_heads and fits(n, n_kv_heads)
        ],
        "n_kv_heads": [
            n for n in range(1, source.n_kv_heads + 1) if n_heads <= source.n_heads and fits(n_heads, n)
        ],
    }
    changes = [f"{where}{key}={n}" for key, numbers in found.items() for n in numbers]
    return (
        f"{where}n_heads is {n_heads}, which {n_kv_heads} KV heads do not divide; every KV head must serve "
        f"the same number of query heads. The source has {source.n_heads} query and {source.n_kv_heads} KV "
        f"heads: set {' or '.join(changes) or f'{where}n_heads and {where}n_kv_heads lower'}."
    )


def _family_of_name(name: str) -> str:
    return "gpt_neox" if "pythia" in name else "llama"
