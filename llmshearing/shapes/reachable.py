"""Checks before the first step that masks can prune a source to a target, and that it can be exported."""

from llmshearing import cli
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.units import KINDS, is_grouped, kept_size, needed_kinds, row_size

_SIZES = ("d_model", "n_heads", "n_kv_heads", "n_layers", "intermediate_size")

_MULTIPLES = ("llama", "gemma2", "gemma3_text")  # whose d_model transformers 5 wants a multiple of n_heads

_NO_MASKS = (
    "has neither target_model nor pruning_modules: nothing would be pruned. Name the masks, such as "
    "pruning_modules=[head,intermediate,layer,hidden]."
)


def pruning_problems(
    source: Architecture,
    target: Architecture | None,
    names: list[str],
    section: str,
    where: str = "target_model.",
) -> list[str]:
    """Why masks `names` cannot prune `source` to `target`, one sentence each; empty when they can.

    Args:
        section: the one in which masks and target stand.
        where: what stands before the name of a size.
    """
    unknown = [name for name in names if name not in KINDS]
    if unknown:
        return [_unknown_mask(name) for name in unknown]
    problems = _clashes(source, names)
    if target is None:
        return problems if names else [*problems, f"{section} {_NO_MASKS}"]
    problems += _sizes(source, target, where)
    if problems:
        return problems
    if not needed_kinds(source, target) and not names:
        return [f"{_named(where)} has the shape of the source: nothing would be pruned. Set smaller sizes."]
    return _uncovered(source, target, names, section) + _export_problems(target, where)


def _named(where: str) -> str:
    return where.rstrip(".") or "The target"


def _unknown_mask(name: str) -> str:
    if name in ("qk_head_dim", "vo_head_dim"):
        return (
            f"pruning_modules has {name}, which is not supported: rotary pairs make the dimensions inside "
            "a head unequal and no HF config can express the result. Use head (or kv_head) instead."
        )
    near = cli.nearest(name, KINDS) or ";"
    return f"pruning_modules has {name!r}{near} expected some of: {', '.join(KINDS)}."


def _clashes(source: Architecture, names: list[str]) -> list[str]:
    problems = []
    if len(set(names)) < len(names):
        problems.append(f"pruning_modules names a mask twice: {', '.join(names)}.")
    both = [name for name in ("head_layer", "mlp") if name in names]
    if "layer" in names and both:
        problems.append(
            f"pruning_modules has layer beside {' and '.join(both)}, which mask the same blocks; keep layer "
            "for whole layers, or the other for single blocks."
        )
    if "kv_head" in names and not is_grouped(source):
        problems.append(
            "pruning_modules has kv_head, but the source has one KV head for each query head; use head."
        )
    return problems


def _sizes(source: Architecture, target: Architecture, where: str) -> list[str]:
    larger = [name for name in _SIZES if getattr(target, name) > getattr(source, name)]
    if "n_heads" in larger and target.n_kv_heads == target.n_heads:
        larger.remove("n_kv_heads")  # which follows from n_heads
    problems = [
        f"{where}{name} is {getattr(target, name)}, more than the source's {getattr(source, name)}; "
        "pruning only removes: set it lower or leave it out."
        for name in larger
    ]
    if target.vocab_size != source.vocab_size:
        problems.append(
            f"{where}vocab_size is {target.vocab_size}, the source's is {source.vocab_size}; "
            "a vocabulary is not pruned: set them equal or leave it out."
        )
    if target.group_size > source.group_size and "n_heads" not in larger:
        problems.append(
            f"{_named(where)} has {target.group_size} query heads for each KV head, the source has "
            f"{source.group_size}; groups only shrink: raise {where}n_kv_heads or lower {where}n_heads."
        )
    return problems


def _uncovered(source: Architecture, target: Architecture, names: list[str], section: str) -> list[str]:
    problems = []
    for kind in needed_kinds(source, target):
        if kind in names:
            continue
        key = KINDS[kind].target_key
        note = ""
        if kind == "layer" and {"head_layer", "mlp"} & set(names):
            note = " (head_layer and mlp may leave half a layer, which cannot be taken out)"
        problems.append(
            f"target_model.{key} shrinks {kind} from {row_size(kind, source)} to "
            f"{kept_size(kind, source, target)}, but pruning_modules [{', '.join(names)}] has no mask "
            f"for it{note}: add {kind} to {section}.pruning_modules."
        )
    return problems


def export_warnings(target: Architecture) -> list[str]:
    """Warnings for a `target` that only some versions of transformers load."""
    if target.family in _MULTIPLES and target.d_model % target.n_heads:
        return [
            f"target_model has d_model {target.d_model}, not a multiple of its {target.n_heads} heads: "
            f"transformers 5 rejects such a model of family {target.family}, transformers 4 loads it. Choose "
            "a multiple of n_heads to have both."
        ]
    return []


def _export_problems(target: Architecture, where: str) -> list[str]:
    if target.width_fixes_heads and target.n_heads * target.head_dim != target.d_model:
        return [
            f"{_named(where)} has d_model {target.d_model} and {target.n_heads} heads of {target.head_dim}; "
            f"an HF config of this {target.family} model has no head size of its own, so d_model must be "
            f"n_heads times {target.head_dim}: set {where}d_model={target.n_heads * target.head_dim}."
        ]
    return []
