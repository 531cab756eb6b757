"""Scores in a file, with what they were made from: safetensors, so that reading runs nothing."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from llmshearing.files import first_line, replacing, save_tensors
from llmshearing.pruning.scores import kinds_of
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.key_map import PREFIX
from llmshearing.shapes.units import KINDS

TURNING = ("activation", "taylor")
"""Methods by which the score of a layer is how far it turns the residual stream."""

_KEY = "llmshearing_scores"
_LOOKED_AT = 1024  # entries of each weight that a fingerprint depends on


@dataclass(frozen=True)
class Origin:
    """What scores were made from.

    Attributes:
        method: how, such as activation.
        model: the sizes and options of the model, as `shape_of` gives them.
        weights: `fingerprint` of its weights.
        settings: the seed, and of a method that reads data also `data`, `samples` and `length`.
    """

    method: str
    model: dict[str, Any]
    weights: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Scores:
    """Scores by kind, in the shapes of `Kind.shape`, with their origin."""

    by_kind: dict[str, Tensor]
    origin: Origin


def shape_of(arch: Architecture) -> dict[str, Any]:
    """What scores depend on of an architecture, as JSON has it."""
    return json.loads(json.dumps({key: v for key, v in asdict(arch).items() if key != "max_seq_len"}))


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """A hash of up to 1,024 evenly spaced entries of each weight of a model, by our names."""
    found = hashlib.sha256()
    for name in sorted(name for name in weights if name.startswith(PREFIX)):
        flat = weights[name].reshape(-1)
        some = flat[:: max(1, flat.numel() // _LOOKED_AT)].float()
        found.update(f"{name} {tuple(weights[name].shape)}".encode() + some.cpu().numpy().tobytes())
    return found.hexdigest()


def write_scores(path: Path, scores: Scores) -> None:
    """Write scores to a file, completely or not at all.

    Raises:
        ValueError: when they are not all finite numbers, which no shape can be chosen by.
        OSError: when it cannot be written.
    """
    if strange := [kind for kind, values in scores.by_kind.items() if not _are_numbers(values)]:
        raise ValueError(
            f"The scores of {', '.join(strange)} are not all finite numbers, so {path} is not written: "
            "weights, activations or gradients of the model are too large to compute with."
        )
    with replacing(path) as draft:
        tensors = {kind: values.contiguous() for kind, values in scores.by_kind.items()}
        save_tensors(tensors, draft, {_KEY: json.dumps(asdict(scores.origin))})


def check_file(path: str | Path) -> None:
    """Check that there is a file to read scores from.

    Raises:
        FileNotFoundError, IsADirectoryError: when there is none, or a folder.
    """
    if Path(path).is_dir():
        raise IsADirectoryError(
            f"{path} is a folder; expected a file of scores, such as {path}/scores.safetensors."
        )
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{path} not found; expected a file of scores, as `llmshearing oneshot ... --scores FILE` writes."
        )


def read_scores(path: str | Path, arch: Architecture) -> Scores:
    """The scores in a file, which are those of a model of the shape `arch`.

    Raises:
        FileNotFoundError, IsADirectoryError: as `check_file`.
        ValueError: when it does not hold scores, or those of a model with a different shape.
    """
    check_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            origin = _origin((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except Exception as error:  # a broken header can raise anything
        raise ValueError(
            f"{path} is not a file of scores ({type(error).__name__}: {first_line(error)[:200]}); expected "
            "one that `llmshearing oneshot ... --scores FILE` wrote."
        ) from error
    expected = shape_of(arch)
    off = [key for key in {*expected, *origin.model} if expected.get(key) != origin.model.get(key)]
    if off:
        raise ValueError(
            f"The scores in {path} belong to a model of a different shape: "
            + ", ".join(
                f"{key} {origin.model.get(key)} (the model has {expected.get(key)})" for key in sorted(off)
            )
            + ". Compute them for this model."
        )
    shapes = {kind: KINDS[kind].shape(arch) for kind in kinds_of(arch)}
    found = {kind: tuple(values.shape) for kind, values in tensors.items()}
    if found != shapes:
        raise ValueError(f"{path} holds scores of shapes {found}; expected {shapes}. Compute them again.")
    if strange := [kind for kind, values in tensors.items() if not _are_numbers(values)]:
        raise ValueError(
            f"{path}: the scores of {', '.join(strange)} are not all finite numbers; compute them again."
        )
    return Scores({kind: values.float() for kind, values in tensors.items()}, origin)


def read_importance(path: str | Path, arch: Architecture) -> Scores:
    """The scores in a file, of which those of layers are how far each turns the residual stream.

    Raises:
        OSError, ValueError: as `read_scores`, and when a method made them that scores layers by
            something else.
    """
    scores = read_scores(path, arch)
    if scores.origin.method not in TURNING:
        raise ValueError(
            f"{path} holds scores by {scores.origin.method!r}; expected scores by {' or '.join(TURNING)}, by "
            "which a layer is important that changes its input much. Make a new file: `llmshearing oneshot "
            f"... --method {TURNING[0]} --data DATA --scores FILE`."
        )
    return scores


def _origin(text: str) -> Origin:
    """The origin in the metadata of a file.

    Raises:
        TypeError, ValueError: when it is something else.
    """
    origin = Origin(**json.loads(text))
    expected = {"method": str, "model": dict, "weights": str, "settings": dict}
    for name, kind in expected.items():
        if not isinstance(getattr(origin, name), kind):
            raise TypeError(f"its {name} is a {type(getattr(origin, name)).__name__}")
    return origin


def _are_numbers(values: Tensor) -> bool:
    return values.is_floating_point() and bool(values.float().isfinite().all())


def check_weights_of(
    scores: Scores, weights: Mapping[str, Tensor], path: str | Path, source: str | Path
) -> None:
    """Check that scores were made from these weights.

    Raises:
        ValueError: when they were made from others of the same shape.
    """
    if scores.origin.weights != fingerprint(weights):
        raise ValueError(
            f"The scores in {path} were made from other weights than those of {source}, of the same shape; "
            "compute them for this model."
        )
