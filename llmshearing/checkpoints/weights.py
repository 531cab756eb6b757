"""The weights that an architecture has, and the sizes that weights imply."""

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmshearing.pruning import METHODS
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.key_map import PREFIX
from llmshearing.shapes.units import weight_shapes

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_LISTED = 8
_FUSED = f"{PREFIX}blocks.0.attn.query_key_value.weight"


def section_of(name: str) -> str | None:
    """The section of the pruning method that a tensor belongs to; None for a weight of the model."""
    top, section, *_ = [*name.split("."), ""]
    if top == "model" and section in METHODS:
        return section
    leaf = name.rpartition(".")[2]
    return next((section for section, method in METHODS.items() if leaf in method.inside), None)


def only_weights(found: Mapping[Any, Any], source: str | Path) -> dict[str, Tensor]:
    """What a file holds as weights, which may be anything, as tensors by name.

    Raises:
        ValueError: for anything else, and for a tensor that announces more numbers than are stored.
    """
    for name, value in found.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            raise ValueError(
                f"{source}: found a {type(value).__name__} named {str(name)[:100]!r} ({type(name).__name__}) "
                "among the weights, expected tensors named by texts; save it again with tensors alone."
            )
        if value.layout == torch.strided and value.nbytes > value.untyped_storage().nbytes():
            raise ValueError(
                f"{source}: found {value.untyped_storage().nbytes():,} bytes for {name} of shape "
                f"{list(value.shape)}, expected {value.nbytes:,}; save the tensor whole, by `.contiguous()`."
            )
    return dict(found)


def sizes_of(weights: Mapping[str, Tensor], head_dim: int, source: str | Path) -> dict[str, int]:
    """The sizes of `Architecture` that follow from the shapes of weights.

    Raises:
        ValueError: when an expected weight is missing, or no matrix, or `head_dim` does not divide the
            projections.
    """
    fused = _FUSED in weights
    names = ("query_key_value", "query_key_value") if fused else ("wq", "wk")
    vocab_size, d_model = _shape(weights, "wte.weight", source)
    queries, keys = (_shape(weights, f"blocks.0.attn.{name}.weight", source)[0] for name in names)
    part = 3 * head_dim if fused else head_dim
    if queries % part or keys % part:
        raise ValueError(
            f"{source}: blocks.0.attn.{names[0]} has {queries} rows, which heads of size {head_dim} do not "
            "divide; give head_dim=... or num_attention_heads=... ."
        )
    return {
        "d_model": d_model,
        "vocab_size": vocab_size,
        "n_heads": queries // part,
        "n_kv_heads": keys // part,
        "head_dim": head_dim,
        "n_layers": len({name for name in weights if name.endswith(".mlp.down_proj.weight")}),
        "intermediate_size": _shape(weights, "blocks.0.mlp.up_proj.weight", source)[0],
    }


def query_rows(weights: Mapping[str, Tensor], source: str | Path) -> int:
    """The rows of the queries of all heads.

    Raises:
        ValueError: when the weight is missing, or no matrix.
    """
    if _FUSED in weights:
        return _shape(weights, "blocks.0.attn.query_key_value.weight", source)[0] // 3
    return _shape(weights, "blocks.0.attn.wq.weight", source)[0]


def check_weights(weights: Mapping[str, Tensor], arch: Architecture, source: str | Path) -> None:
    """Reject weights that are not exactly those of `arch`; tensors of a pruning method are ignored.

    Raises:
        ValueError: naming missing and unexpected weights, wrong shapes (expected and found) and wrong types.
    """
    expected = {PREFIX + name: shape for name, shape in weight_shapes(arch)}
    found = {name: tensor for name, tensor in weights.items() if section_of(name) is None}
    both = [name for name in expected if name in found]
    problems = [
        _listing("missing", (name for name in expected if name not in found)),
        _listing("unexpected", (name for name in found if name not in expected)),
        _listing(
            "of the wrong shape",
            (
                f"{name} (expected {expected[name]}, found {tuple(found[name].shape)})"
                for name in both
                if tuple(found[name].shape) != expected[name]
            ),
        ),
        _listing(
            "of a type other than fp32, bf16 and fp16",
            (f"{name} ({found[name].dtype})" for name in both if found[name].dtype not in FLOATS),
        ),
        _listing(
            "not a dense tensor in memory",
            (name for name in both if found[name].layout != torch.strided or found[name].is_meta),
        ),
    ]
    problems = [problem for problem in problems if problem]
    if problems:
        raise ValueError(
            f"The weights of {source} do not fit the model ({_in_words(arch)}): " + " ".join(problems)
        )


def check_finite(weights: Mapping[str, Tensor], source: str | Path) -> None:
    """Reject weights that hold NaN or infinity.

    Raises:
        ValueError: naming the tensors and how many of their numbers are not finite.
    """
    found = [
        f"{name} ({int((~weight.isfinite()).sum()):,} of {weight.numel():,})"
        for name, weight in weights.items()
        if not weight.sum(dtype=torch.float64).isfinite()  # keeps NaN and infinity, copies nothing
    ]
    if found:
        raise ValueError(
            f"{source} has weights that are NaN or infinite, with which nothing can be computed: "
            f"{_listing('affected', found)} Take another copy or an earlier checkpoint of the model."
        )


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """Hash of all names, types, shapes and values, the same wherever and in which order they are stored."""

    def digest(name: str) -> bytes:
        tensor = weights[name].contiguous()
        head = f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
        content = hashlib.sha256(tensor.flatten().view(torch.uint8).numpy().data)
        return hashlib.sha256(head + content.digest()).digest()

    with ThreadPoolExecutor(max_workers=8) as pool:  # hashing large buffers lets other threads run
        digests = pool.map(digest, sorted(weights))
    return hashlib.sha256(b"".join(digests)).hexdigest()


def total_bytes(weights: Mapping[str, Tensor]) -> int:
    """Bytes of all tensors."""
    return sum(weight.nbytes for weight in weights.values())


def _shape(weights: Mapping[str, Tensor], name: str, source: str | Path) -> tuple[int, int]:
    """Rows and columns of a matrix."""
    if PREFIX + name not in weights:
        some = ", ".join(list(weights)[:3]) or "none"
        raise ValueError(
            f"{source} has no weight {PREFIX + name}; it has {len(weights)} tensors: {some}, ..."
        )
    shape = tuple(weights[PREFIX + name].shape)
    if len(shape) != 2:
        raise ValueError(
            f"{source}: found shape {list(shape)} for {PREFIX + name}, expected rows and columns; take "
            "another copy of the model."
        )
    return shape


def _listing(what: str, names: Iterable[str]) -> str:
    listed = list(names)
    rest = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return f"{len(listed)} {what}: {', '.join(listed[:_LISTED])}{rest}." if listed else ""


def _in_words(arch: Architecture) -> str:
    return f"{arch.family}, {shape_in_words(arch)}"


def shape_in_words(arch: Architecture) -> str:
    """Sizes in a line: d_model, heads, layers, MLP width, parameters."""
    return (
        f"d_model {arch.d_model}, {arch.n_heads} heads ({arch.n_kv_heads} KV) of {arch.head_dim}, "
        f"{arch.n_layers} layers, intermediate {arch.intermediate_size}"
    )
