"""HF models on disk: read tensor by tensor without building them, and written in shards."""

import errno
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download, split_torch_state_dict_into_shards
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import safe_open
from torch import Tensor

from llmshearing.checkpoints.safe_load import load_tensors, plain_file_name
from llmshearing.checkpoints.travelling import CONFIG, TRAVELLING, parse_config, read_travelling, with_config
from llmshearing.checkpoints.weights import FLOATS, check_weights, only_weights, total_bytes
from llmshearing.files import first_line, replacing_folder, save_tensors
from llmshearing.progress import writing
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.hf_config import architecture_from_hf
from llmshearing.shapes.key_map import PREFIX, is_weight, renamed_to_composer, to_composer

logger = logging.getLogger(__name__)

SHARD_SIZE = "1GB"  # small enough that even a small model is written by several threads
WRITERS = 4
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
# Where weights are looked for, in the order of transformers.
_PLACES = tuple(name for file in _WEIGHT_FILES for name in (file, f"{file}.index.json"))
_SAFETENSORS = ("*.safetensors", "*.safetensors.index.json")
_PICKLES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class HFModel:
    """Weights by HF names, mapped from their files; the config as a dict; the files that travel with them."""

    path: str
    config: dict[str, Any]
    weights: dict[str, Tensor]
    files: dict[str, str | bytes]


def is_hf(path: Path) -> bool:
    """Whether `path` is an HF folder, or a safetensors or GGUF file."""
    return (path / CONFIG).is_file() or (path.is_file() and path.suffix in (".safetensors", ".gguf"))


def read_hf(path: str | Path) -> HFModel:
    """Read an HF model: a folder, a safetensors or GGUF file, or the name of a model on the hub.

    Raises:
        FileNotFoundError: when the model, or a shard that its index names, does not exist.
        ValueError: when a file is broken, or is not what it should be.
    """
    place = Path(path)
    if place.suffix == ".gguf":
        # Imported here: gguf is an extra that only such files need.
        from llmshearing.checkpoints.gguf_files import read_gguf

        return HFModel(str(path), *read_gguf(place))
    if not place.exists():
        place = download(str(path))
    if place.is_file() and not is_hf(place) and place.name not in _WEIGHT_FILES:
        raise ValueError(
            f"{place} is not an HF model: expected a folder with {CONFIG}, or a safetensors or GGUF file. "
            "`llmshearing export` converts a Composer checkpoint."
        )
    # Links are followed once, so that a folder replaced meanwhile is not read in part.
    folder = place.resolve() if place.is_dir() else place.parent.resolve()
    files = read_travelling(folder)
    if CONFIG not in files:
        raise FileNotFoundError(
            f"{folder} has no {CONFIG}; an HF model has one beside its weights.{_gguf_advice(folder)}"
        )
    config = parse_config(files[CONFIG], folder / CONFIG)
    weights = _read_folder(folder) if place.is_dir() else _read_file(folder / place.name)
    return _dequantized(HFModel(str(path), config, weights, files))


def from_hf(model: HFModel) -> tuple[dict[str, Tensor], Architecture]:
    """Weights by our names (the same tensors, not copies) and the architecture.

    Raises:
        ValueError: for a model that is not supported, or whose weights do not match its config.
    """
    arch = architecture_from_hf(model.config)
    held = {name: weight for name, weight in model.weights.items() if is_weight(name)}
    weights = renamed_to_composer(held, arch)
    if arch.tie_embeddings and _HEAD in weights:  # files may hold the embedding twice, or by this name only
        head = weights.pop(_HEAD)
        embedding = weights.setdefault(f"{PREFIX}wte.weight", head)
        if not _same(head, embedding):
            logger.warning(
                "%s: tie_word_embeddings is true, but the weights hold an output head that differs from the "
                "embedding. It is skipped, as in transformers; `llmshearing convert --untie` keeps it.",
                model.path,
            )
    check_weights(weights, arch, model.path)
    return weights, arch


def untied(model: HFModel) -> HFModel:
    """A model that uses the output head among its weights, although its config ties the embeddings.

    Raises:
        ValueError: when the model is not tied, or has no output head of its own.
    """
    arch = architecture_from_hf(model.config)
    heads = [name for name in model.weights if is_weight(name) and _HEAD in to_composer(name, arch.family)]
    if not (arch.tie_embeddings and heads):
        found = "has no output head of its own" if arch.tie_embeddings else "is not tied"
        raise ValueError(f"{model.path} {found}: remove --untie.")
    config = {**model.config, "tie_word_embeddings": False}
    return replace(model, config=config, files=with_config(model.files, config))


def write_hf(
    out: str | Path,
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any],
    files: Mapping[str, str | bytes],
) -> None:
    """Write a folder that `transformers` loads: weights in shards of 1 GB, config and `files`.

    A failed write leaves nothing behind.

    Args:
        files: as returned by `travelling.checked`, which checks their names.

    Raises:
        OSError: when it cannot be written, or `out` is not empty.
    """
    assert set(files) <= set(TRAVELLING)
    weights = _apart(weights)
    with replacing_folder(Path(out)) as folder:
        split = split_torch_state_dict_into_shards(dict(weights), max_shard_size=SHARD_SIZE)

        def write(file: str) -> None:
            shard = {name: weights[name].contiguous() for name in split.filename_to_tensors[file]}
            save_tensors(shard, folder / file)

        shown = writing(folder, total_bytes(weights), Path(out).name)
        with shown, ThreadPoolExecutor(WRITERS) as writers:
            list(writers.map(write, split.filename_to_tensors))
        if split.is_sharded:
            index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            _write_json(folder / "model.safetensors.index.json", index)
        for name, content in files.items():
            data = content if isinstance(content, bytes) else content.encode("utf-8")
            (folder / name).write_bytes(data)
        _write_json(folder / CONFIG, config)


_HEAD = f"{PREFIX}output.weight"


def _same(head: Tensor, embedding: Tensor) -> bool:
    """Whether two matrices hold the same numbers, whatever their types."""
    return head is embedding or (head.shape == embedding.shape and bool((head == embedding).all()))


def _apart(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`weights` without shared memory, which safetensors does not write: shared tensors are copied."""
    users = Counter(weight.untyped_storage().data_ptr() for weight in weights.values())
    return {
        name: weight.clone() if users[weight.untyped_storage().data_ptr()] > 1 else weight
        for name, weight in weights.items()
    }


def _dequantized(model: HFModel) -> HFModel:
    """The model without a `quantization_config` that its weights show to be obsolete.

    Raises:
        ValueError: when weights are quantized.
    """
    if "quantization_config" not in model.config:
        return model
    quantization = model.config["quantization_config"]
    for name, weight in model.weights.items():
        if is_weight(name) and (weight.dtype not in FLOATS or not name.endswith((".weight", ".bias"))):
            raise ValueError(
                f"{model.path} is quantized: its {name} is {weight.dtype}, and {CONFIG} has "
                f"quantization_config {json.dumps(quantization)[:100]}. Pruning needs the weights in fp32, "
                "bf16 or fp16: use the model that this one was made from, or dequantize it."
            )
    logger.warning(
        "%s: every weight is fp32, bf16 or fp16; quantization_config of %s is obsolete and is dropped",
        model.path,
        CONFIG,
    )
    config = {key: value for key, value in model.config.items() if key != "quantization_config"}
    return replace(model, config=config, files=with_config(model.files, config))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _read_folder(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, in the order of transformers: safetensors first, one file before shards."""
    found = [name for name in _PLACES if (folder / name).is_file()]
    if not found:
        shards = sorted(
            file.name for file in folder.glob("*-of-*") if file.suffix in (".safetensors", ".bin")
        )
        if shards:
            raise FileNotFoundError(
                f"{folder} has shards such as {shards[0]}, but not their index; copy it, too: one of "
                f"{', '.join(name for name in _PLACES if name not in _WEIGHT_FILES)}."
            )
        raise FileNotFoundError(
            f"{folder} has no weights; expected one of {', '.join(_PLACES)}.{_gguf_advice(folder)}"
        )
    if len(found) > 1:
        logger.warning(
            "%s holds weights more than once: %s is read, as in transformers, and %s is not; remove the "
            "old files",
            folder,
            found[0],
            " and ".join(found[1:]),
        )
    place = folder / found[0]
    return _read_file(place) if found[0] in _WEIGHT_FILES else _read_shards(place)


def _gguf_advice(folder: Path) -> str:
    other = sorted(file.name for file in folder.glob("*.gguf"))
    return f" To convert {other[0]}, give that file." if other else ""


def _read_shards(index: Path) -> dict[str, Tensor]:
    weight_map = parse_config(_text(index), index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} has no weight_map; expected the shard of every tensor by name.")
    files = sorted({plain_file_name(file, index) for file in weight_map.values()})
    absent = [file for file in files if not (index.parent / file).is_file()]
    if absent:
        raise FileNotFoundError(
            f"{index} names {len(files)} shards, of which {', '.join(absent)} are missing; copy them again."
        )
    weights: dict[str, Tensor] = {}
    for file in files:
        shard = _read_file(index.parent / file)
        weights |= {name: weight for name, weight in shard.items() if weight_map.get(name, file) == file}
    missing = [name for name in weight_map if name not in weights]
    if missing:
        raise ValueError(
            f"{index} names {missing[0]} and {len(missing) - 1} more tensors that no shard holds."
        )
    return weights


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error}).") from error


def _read_file(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        return _only_tensors(load_tensors(path), path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except Exception as error:  # a broken header can raise anything
        if os.strerror(errno.ENOMEM) in str(error):
            raise OSError(
                f"{path} ({path.stat().st_size:,} bytes) is more than this machine lets a process map into "
                "memory: use one with more memory, or save the model in several smaller files."
            ) from error
        raise ValueError(
            f"{path} is truncated or not a safetensors file ({first_line(error)[:200]}); copy it again."
        ) from error


def _only_tensors(loaded: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path} holds a {type(loaded).__name__}; expected the weights of an HF model.")
    return only_weights(loaded, path)


def _reason(error: Exception) -> str:
    """Why the hub gave nothing, in a line."""
    if isinstance(error, LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
        return "it is not in the local cache, and HF_HUB_OFFLINE=1 forbids downloads"
    return first_line(error)[:200]


def download(name: str) -> Path:
    """The cached folder of a hub model; pickled weights are downloaded only where there are no others."""
    fetch: Callable[..., str] = snapshot_download
    try:
        folder = Path(fetch(name, allow_patterns=[*TRAVELLING, *_SAFETENSORS]))
        if not any((folder / place).is_file() for place in _PLACES):
            folder = Path(fetch(name, allow_patterns=[*TRAVELLING, *_PICKLES]))
        return folder
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"{name} is neither a folder or file nor a model on the Hugging Face hub ({_reason(error)})."
        ) from error
