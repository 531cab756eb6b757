"""Reads sharded checkpoints (torch.distributed.checkpoint) in one process, without running anything in them.

The library reads its index with pickle and small values with `weights_only=False`; both are done here
within an allow-list.
"""

import io
import math
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import load

from llmshearing.checkpoints.archive import check_archive
from llmshearing.checkpoints.safe_load import COMPOSER_CLASSES, plain_file_name

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
    """The content of a sharded checkpoint at some places, nested as in a checkpoint of one file.

    Args:
        wanted: keys from the top, such as ("state", "model"); everything below them is read.
        like: tensors to read into, nested in the same way; one that is sharded over processes gets this
            process's part. All others are read whole.

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
        return _with_lists(_nested(flat, places))
    except (CheckpointException, Exception) as error:  # broken bytes can raise anything
        raise ValueError(f"The sharded checkpoint {path} cannot be read: {_reason(error)}") from None


def _nested(flat: Mapping[str, Any], places: Mapping[str, Place]) -> dict[Any, Any]:
    nested: dict[Any, Any] = {}
    for name, place in places.items():
        level = nested
        for key in place[:-1]:
            level = level.setdefault(key, {})
        level[place[-1]] = flat[name]
    return nested


def _with_lists(value: Any) -> Any:
    """Nested dicts, in which those whose keys are 0, 1, ... become lists again."""
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
    return f"a shard is missing or truncated ({text}). Copy the whole folder again, or use an earlier one."


def _is_below(place: Place, wanted: Sequence[Place]) -> bool:
    return any(place[: len(start)] == start for start in wanted)


def _room(entry: Any, place: Place, like: Mapping[Any, Any]) -> Any:
    if not isinstance(entry, metadata.TensorStorageMetadata):
        return None
    parts = {tuple(chunk.offsets): math.prod(chunk.sizes) for chunk in entry.chunks}
    if sum(parts.values()) != math.prod(entry.size):
        raise ValueError(f"the shards do not hold all of {'.'.join(map(str, place))}")
    level: Any = like
    for key in place:
        level = level.get(key) if isinstance(level, Mapping) else None
    if level is None:
        return torch.zeros(entry.size, dtype=entry.properties.dtype)
    if level.shape != entry.size:
        raise ValueError(f"{'.'.join(map(str, place))} has shape {list(entry.size)}, not {list(level.shape)}")
    return level


class _IndexUnpickler(pickle.Unpickler):
    """Builds the classes of an index and rejects all others."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "pathlib._local":  # so Python 3.13 calls it, and no other
            module = "pathlib"
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
        self._check_places(index)
        return index

    def _check_places(self, index: metadata.Metadata) -> None:
        """Check that the files hold what the index says of them."""
        sizes: dict[str, int] = {}
        for part, info in (index.storage_data or {}).items():
            name = plain_file_name(info.relative_path, INDEX)
            file = Path(self.path) / name
            if name not in sizes and not file.is_file():
                raise ValueError(f"{name} is missing")
            size = sizes.setdefault(name, file.stat().st_size)
            if info.offset < 0 or info.length < 0 or info.offset + info.length > size:
                raise ValueError(f"{name} has {size:,} bytes and should hold more of {part.fqn}")

    def _slice_file(self, file: IO[bytes], sinfo: Any) -> IO[bytes]:
        file.seek(sinfo.offset)
        part = io.BytesIO(file.read(sinfo.length))
        check_archive(part)
        part.seek(0)
        return part


class _Planner(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        with torch.serialization.safe_globals(COMPOSER_CLASSES):
            self.state_dict[read_item.dest_index.fqn] = torch.load(value, weights_only=True)
