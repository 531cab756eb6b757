"""Checkpoints of every kind, opened: weights by our names, and the record that travels with them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from llmshearing.checkpoints import run_folder
from llmshearing.checkpoints.hf_files import from_hf, is_hf, read_hf
from llmshearing.checkpoints.safe_load import load_tensors
from llmshearing.checkpoints.travelling import CONFIG, checked, parse_config
from llmshearing.checkpoints.weights import only_weights, section_of
from llmshearing.shapes.key_map import PREFIX

RECORD_KEY = "llmshearing"


@dataclass(frozen=True)
class Checkpoint:
    """Weights and their record.

    Attributes:
        path: where they were read, links followed.
        weights: by our names, masks and multipliers included; mapped from the file where possible.
        record: `hf_files` (name -> text or bytes of the HF config and tokenizer files) and `config` (YAML
            of the run, or None); None when the checkpoint carries none. Checked where it was read.
        opened: the file that was read, links followed, and `_stamp` of it; None for anything but one file.
    """

    path: Path
    weights: dict[str, Tensor]
    record: dict[str, Any] | None
    opened: tuple[Path, Any] | None = None

    @property
    def hf_files(self) -> dict[str, str | bytes]:
        """HF files that travel with the weights, by name."""
        return dict((self.record or {}).get("hf_files") or {})

    @property
    def hf_config(self) -> dict[str, Any] | None:
        """The HF config that travels with the weights."""
        text = self.hf_files.get(CONFIG)
        return None if text is None else parse_config(text, f"{self.path}: {CONFIG}")

    @property
    def section(self) -> str | None:
        """The section of the pruning method trained with the weights; None: they are a plain model's."""
        return next(filter(None, map(section_of, self.weights)), None)

    @property
    def method_tensors(self) -> dict[str, Tensor]:
        """Tensors of the pruning method, by their names inside it or, of those that it put there, inside the
        decoder."""
        prefix = f"model.{self.section}."
        own = {name: weight for name, weight in self.weights.items() if section_of(name)}
        return {name.removeprefix(prefix).removeprefix(PREFIX): weight for name, weight in own.items()}


def read_checkpoint(path: str | Path) -> Checkpoint:
    """`open_checkpoint`, after comparing the files with the run's manifest, where there is one.

    Raises:
        FileNotFoundError: when there is nothing at `path`.
        ValueError: when it is not a checkpoint, is damaged, holds more than data, or has no model weights.
    """
    place = run_folder.follow(path)  # once: a run moves the link while others read
    manifest = run_folder.read_manifest(place)
    if manifest is None:
        return open_checkpoint(path)
    before = _stamp(place)
    run_folder.reject(place, run_folder.damage(place, manifest["files"]))
    checkpoint = open_checkpoint(place)
    _check_unchanged(place, before)
    return checkpoint


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Map the weights of a Composer checkpoint (whole or sharded), a bare state dict or an HF model.

    Raises:
        FileNotFoundError: when there is nothing at `path`.
        ValueError: when it is not a checkpoint, is truncated, holds more than data, or has no model weights.
    """
    path = run_folder.follow(path)
    if is_hf(path):
        model = read_hf(path)
        return Checkpoint(path, from_hf(model)[0], {"hf_files": model.files, "config": None})
    place = path.resolve()
    opened = (place, _stamp(place)) if place.is_file() else None
    loaded = _load_sharded(path) if place.is_dir() else load_tensors(place)
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path} holds a {type(loaded).__name__}; expected a checkpoint or a state dict.")
    state = loaded.get("state")
    state = state if isinstance(state, Mapping) else {}
    weights = state.get("model", loaded)
    weights = weights if isinstance(weights, Mapping) else {}
    if f"{PREFIX}wte.weight" not in weights:
        found = ", ".join(map(str, list(weights or loaded)[:4])) or "nothing"
        raise ValueError(
            f"{path} has no weights of a model under state.model or at its top, where {PREFIX}wte.weight is "
            f"expected; found {found}."
        )
    record = loaded.get(RECORD_KEY)
    if record is None:
        record = _callbacks(state, path).get("RunRecord")
    return Checkpoint(path, only_weights(weights, path), _checked_record(record, path), opened)


def in_pieces(checkpoint: Checkpoint, size: int = 2**28) -> Iterator[dict[str, Tensor]]:
    """The weights of a checkpoint in pieces of about `size` bytes.

    Each piece is mapped separately, so that memory holds the pages of one piece, not of all pieces so far.
    """
    pieces: list[list[str]] = [[]]
    held = 0
    for name, weight in checkpoint.weights.items():
        if held >= size:
            pieces.append([])
            held = 0
        pieces[-1].append(name)
        held += weight.nbytes
    for names in pieces:
        weights = checkpoint.weights
        if checkpoint.opened is not None:
            place, stamp = checkpoint.opened
            weights = open_checkpoint(place).weights
            _check_unchanged(place, stamp)
        yield {name: weights[name] for name in names}


def _stamp(path: Path) -> Any:
    """Identifies a state of a file: it changes when the file is replaced or written to."""
    state = path.stat()
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def _check_unchanged(path: Path, stamp: Any) -> None:
    if _stamp(path) != stamp:
        raise ValueError(f"{path} was replaced or written to while it was read: start the command again.")


def _callbacks(state: Mapping[Any, Any], source: Path) -> Mapping[Any, Any]:
    """What the callbacks of a run saved, by their names; empty where there were none."""
    callbacks = state.get("callbacks")
    if not isinstance(callbacks, Mapping | None):
        raise ValueError(
            f"{source}: found a {type(callbacks).__name__} as state.callbacks, expected a mapping; take an "
            "earlier checkpoint of the run."
        )
    return callbacks or {}


def _checked_record(record: Any, source: Path) -> dict[str, Any] | None:
    """The record, its files checked; None when there is none.

    Raises:
        ValueError: when it is not a record as this package writes it.
    """
    if record is None:
        return None
    if not isinstance(record, Mapping):
        raise ValueError(f"{source} carries a {type(record).__name__} as its record; expected a mapping.")
    config = record.get("config")
    if not (config is None or isinstance(config, str)):
        raise ValueError(f"{source} carries a {type(config).__name__} as configuration; expected YAML.")
    files = record.get("hf_files")
    return {**record, "hf_files": checked({} if files is None else files, source)}


def _load_sharded(path: Path) -> Any:
    # Imported here: torch.distributed.checkpoint takes seconds, and a single file has no use for it.
    from llmshearing.checkpoints.sharded import INDEX, is_sharded, load_sharded

    if not is_sharded(path):
        latest = path / run_folder.LATEST
        advice = f"use the run's {latest}" if latest.exists() else "expected a checkpoint or a folder of one"
        raise FileNotFoundError(
            f"{path} is not a model folder: it has neither {CONFIG} nor {INDEX}; {advice}."
        )
    return load_sharded(path)
