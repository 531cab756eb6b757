"""Sharded checkpoints (torch.distributed.checkpoint), read by one process and without running any of them.

The library reads its index with pickle and small values with `weights_only=False`; both are done here
within an allow-list.
"""

import io
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import load

from llmshearing.checkpoints.safe_load import COMPOSER_CLASSES

INDEX = ".metadata"
Place = tuple[Any, ...]
MODEL_AND_RECORD: tuple[Place, ...] = (("state", "model"), ("state", "callbacks", "RunRecord"))
_ALLOWED = {
    (module.__name__, name)
    for module, names in (
        (
            metadata,
            "Metadata TensorStorageMetadata BytesStorageMetadata ChunkStorageMetadata TensorProperties",
        ),
        (metadata, "MetadataIndex StorageMeta _MEM_FORMAT_ENCODING"),
        (filesystem, "_StorageInfo"),
        (torch, "Size"),
        (torch.serialization, "_get_layout"),
    )
    for name in names.split()
} | {("pathlib", "PosixPath"), ("pathlib", "WindowsPath")}


def is_sharded(path: Path) -> bool:
    """Whether `path` is the folder of a sharded checkpoint."""
    return (path / INDEX).is_file()


def load_sharded(
    path: Path, wanted: Sequence[Place] = MODEL_AND_RECORD, like: Mapping[Any, Any] | None = None
) -> dict[str, Any]:
    """What a sharded checkpoint holds at some places, nested as in a checkpoint of one file.

    Args:
        wanted: keys from the top, such as ("state", "model"); all below them is read.
        like: nested in the same way, tensors to read into; a tensor that is sharded over processes gets
            this process's part. The others are read whole.

    Raises:
        ValueError: when the index or a shard is missing or broken, or holds more than data.
    """
    reader = _Reader(path)
    try:
        index = reader.read_metadata()
        places = {name: p for name, p in (index.planner_data or {}).items() if _is_below(p, wanted)}
        flat = {name: _room(index.state_dict_metadata[name], p, like or {}) for name, p in places.items()}
        planner = _Planner(flatten_state_dict=False, flatten_sharded_tensors=False)
        load(flat, storage_reader=reader, planner=planner, no_dist=True)
    except (CheckpointException, Exception) as error:  # broken bytes lead the library anywhere
        raise ValueError(f"The sharded checkpoint {path} cannot be read: {_reason(error)}") from None
    nested: dict[Any, Any] = {}
    for name, place in places.items():
        level = nested
        for key in place[:-1]:
            level = level.setdefault(key, {})
        level[place[-1]] = flat[name]
    return _with_lists(nested)


def _with_lists(value: Any) -> Any:
    """Nested dicts with those whose keys are 0, 1, ... turned back into the lists they were."""
    if not isinstance(value, dict):
        return value
    inner = {key: _with_lists(item) for key, item in value.items()}
    is_list = bool(inner) and all(isinstance(key, int) for key in inner)
    return [inner[key] for key in sorted(inner)] if is_list else inner


def _reason(error: BaseException) -> str:
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, pickle.UnpicklingError):
        return f"it holds more than tensors and plain values; nothing of it was run. {str(error)[:200]}"
    text = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return f"a shard is missing or truncated ({text}). Copy the whole folder again, or take an earlier one."


def _is_below(place: Place, wanted: Sequence[Place]) -> bool:
    return any(place[: len(start)] == start for start in wanted)


def _room(entry: Any, place: Place, like: Mapping[Any, Any]) -> Any:
    if not isinstance(entry, metadata.TensorStorageMetadata):
        return None
    level: Any = like
    for key in place:
        level = level.get(key) if isinstance(level, Mapping) else None
    if level is None:
        return torch.empty(entry.size, dtype=entry.properties.dtype)
    if level.shape != entry.size:
        raise ValueError(f"{'.'.join(map(str, place))} has shape {list(entry.size)}, not {list(level.shape)}")
    return level


class _IndexUnpickler(pickle.Unpickler):
    """Builds the classes of an index and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if (module, name) not in _ALLOWED and not is_dtype:
            raise pickle.UnpicklingError(f"Its {INDEX} holds {module}.{name}, which no index has.")
        return super().find_class(module, name)


class _Reader(filesystem.FileSystemReader):
    def read_metadata(self) -> metadata.Metadata:
        with (Path(self.path) / INDEX).open("rb") as file:
            index = _IndexUnpickler(file).load()
        index.storage_meta = index.storage_meta or metadata.StorageMeta()
        index.storage_meta.load_id = self.load_id
        return index


class _Planner(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        with torch.serialization.safe_globals(COMPOSER_CLASSES):
            self.state_dict[read_item.dest_index.fqn] = torch.load(value, weights_only=True)
