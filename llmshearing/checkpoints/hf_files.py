"""HF models on disk: read tensor by tensor without building them, and written in shards."""

import json
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download, split_torch_state_dict_into_shards
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llmshearing.checkpoints.safe_load import load_tensors
from llmshearing.checkpoints.weights import check_weights, total_bytes
from llmshearing.files import replacing_folder, save_tensors
from llmshearing.progress import writing
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.families import architecture_from_hf
from llmshearing.shapes.key_map import is_weight, to_composer

SHARD_SIZE = "1GB"  # small enough that even a small model is written by several threads
WRITERS = 4
CONFIG = "config.json"
_TRAVELLING = (  # files that make a model usable besides its weights
    CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
_BINARY = ("tokenizer.model",)
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class HFModel:
    """Weights by HF names, mapped from their files, the config as a dict, and `files` that travel along."""

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
        FileNotFoundError: when there is no such model, or a shard that its index names is missing.
        ValueError: when a file is broken, or is not what it should be.
    """
    place = Path(path)
    if place.suffix == ".gguf":
        return _read_gguf(place)
    if not place.exists():
        place = _download(str(path))
    if place.is_file() and not is_hf(place) and place.name not in _WEIGHT_FILES:
        raise ValueError(
            f"{place} is no HF model: expected a folder with {CONFIG}, or a safetensors or GGUF file. A "
            "Composer checkpoint is converted by `llmshearing export`."
        )
    folder = place if place.is_dir() else place.parent
    files = read_travelling(folder)
    if CONFIG not in files:
        raise FileNotFoundError(f"{folder} has no {CONFIG}; an HF model has one beside its weights.")
    config = parse_config(files[CONFIG], folder / CONFIG)
    weights = _read_folder(place) if place.is_dir() else _read_file(place)
    return HFModel(str(path), config, weights, files)


def from_hf(model: HFModel) -> tuple[dict[str, Tensor], Architecture]:
    """Weights by our names, the very tensors of `model`, and the architecture.

    Raises:
        ValueError: for a model that is not supported, or whose weights are not those of its config.
    """
    arch = architecture_from_hf(model.config)
    weights = {
        to_composer(name, arch.family): weight for name, weight in model.weights.items() if is_weight(name)
    }
    if arch.tie_embeddings:  # files may hold the embedding twice
        weights.pop(
            to_composer("embed_out.weight" if arch.fused_qkv else "lm_head.weight", arch.family), None
        )
    check_weights(weights, arch, model.path)
    return weights, arch


def read_travelling(folder: Path) -> dict[str, str | bytes]:
    """Config and tokenizer files of an HF folder, by name; text, but for binary formats."""
    return {
        name: (folder / name).read_bytes() if name in _BINARY else (folder / name).read_text("utf-8")
        for name in _TRAVELLING
        if (folder / name).is_file()
    }


def parse_config(text: str | bytes, source: str | Path) -> dict[str, Any]:
    """The dict that a config.json holds.

    Raises:
        ValueError: when it is not a JSON object.
    """
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{source} is not JSON: {error}.") from error
    if not isinstance(config, dict):
        raise ValueError(f"{source} holds a {type(config).__name__}; expected an object.")
    return config


def write_hf(
    out: str | Path,
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any],
    files: Mapping[str, str | bytes],
) -> None:
    """Write a folder that `transformers` loads: weights in shards of 1 GB, config and `files`; or nothing.

    Raises:
        OSError: when it cannot be written, or `out` holds anything.
    """
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


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _read_folder(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, safetensors before pickles, shards by their index."""
    for name in _WEIGHT_FILES:
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _read_shards(index)
        if (folder / name).is_file():
            return _read_file(folder / name)
    raise FileNotFoundError(
        f"{folder} has no weights; expected one of {', '.join(_WEIGHT_FILES)} or its .index.json."
    )


def _read_shards(index: Path) -> dict[str, Tensor]:
    weight_map = parse_config(index.read_text("utf-8"), index).get("weight_map") or {}
    files = sorted(set(weight_map.values()))
    absent = [file for file in files if not (index.parent / file).is_file()]
    if absent:
        raise FileNotFoundError(
            f"{index} names {len(files)} shards, of which {', '.join(absent)} are missing; copy them again."
        )
    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= _read_file(index.parent / file)
    missing = [name for name in weight_map if name not in weights]
    if missing:
        raise ValueError(
            f"{index} names {missing[0]} and {len(missing) - 1} more tensors that no shard holds."
        )
    return weights


def _read_file(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        return _only_tensors(load_tensors(path), path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or no safetensors file ({error}); copy it again.") from error


def _only_tensors(loaded: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(loaded, Mapping) and all(isinstance(value, Tensor) for value in loaded.values()):
        return dict(loaded)
    raise ValueError(f"{path} holds more than tensors by name; expected the weights of an HF model.")


def _download(name: str) -> Path:
    wanted = [*_TRAVELLING, "*.safetensors", "*.safetensors.index.json"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"{name} is neither a folder or file nor a model that the Hugging Face hub gives "
            f"({str(error).splitlines()[0][:200]})."
        ) from error


def _read_gguf(path: Path) -> HFModel:
    """A GGUF file by way of transformers, which also makes a tokenizer from it; weights become fp32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model.config.architectures = [type(model).__name__]
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (Path(folder) / "tokenizer.model").unlink(missing_ok=True)  # a copy of the whole GGUF file
        files = read_travelling(Path(folder))
    config = parse_config(files[CONFIG], path)
    return HFModel(str(path), config, dict(model.state_dict()), files)
