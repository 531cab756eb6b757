"""The checkpoints in a run's folder: each is complete or absent, and can be checked against its manifest.

A checkpoint is written below `.incomplete/` and renamed into the folder when all of it is on disk, after its
manifest `NAME.json`:

    {"step": 400, "written": 1763720000.0, "files": {"ep0-ba400-rank0.pt": {"bytes": 123, "sha256": "..."}}}

A name without a manifest, or a manifest without its checkpoint, is what a killed process left behind and
counts as absent. `latest-rank0.pt` points to the one written last.
"""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

LATEST = "latest-rank0.pt"
_NAME = re.compile(r"ep\d+-ba(\d+)(-rank0\.pt)?")
_BLOCK = 2**24


def checkpoint_name(epoch: int, step: int, sharded: bool) -> str:
    """The name of a checkpoint: a folder where every process writes a part, else a file."""
    return f"ep{epoch}-ba{step}" if sharded else f"ep{epoch}-ba{step}-rank0.pt"


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of `folder`, the one written last first."""
    found = [path for path in folder.glob("ep*-ba*") if _NAME.fullmatch(path.name) and read_manifest(path)]
    return sorted(found, key=lambda path: (read_manifest(path) or {})["written"], reverse=True)


def without_manifest(folder: Path) -> list[Path]:
    """What has the name of a checkpoint and no manifest, the latest step first: copied here without it."""
    found = [
        path for path in folder.glob("ep*-ba*") if _NAME.fullmatch(path.name) and not read_manifest(path)
    ]
    return sorted(found, key=step_of, reverse=True)


def latest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint that was written last; None without any."""
    found = checkpoints(folder)
    return found[0] if found else None


def step_of(checkpoint: Path) -> int:
    """The number of steps behind a checkpoint, from its name."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None
    return int(match[1])


def read_manifest(checkpoint: Path) -> dict[str, Any] | None:
    """What was written about `checkpoint`; None when nothing, or nothing readable, was."""
    try:
        manifest = json.loads(_manifest_path(checkpoint).read_text())
        return manifest if {"step", "written", "files"} <= manifest.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def damage(checkpoint: Path, files: Iterable[str]) -> list[str]:
    """How these files of `checkpoint` differ from its manifest, one sentence each."""
    manifest = read_manifest(checkpoint)
    assert manifest is not None
    problems = []
    for name in files:
        path, expected = _file(checkpoint, name), manifest["files"][name]
        if not path.is_file():
            problems.append(f"{path} is missing.")
        elif path.stat().st_size != expected["bytes"]:
            problems.append(f"{path} has {path.stat().st_size:,} bytes; {expected['bytes']:,} were written.")
        elif describe_file(path) != expected:
            problems.append(f"{path} has other contents than were written: its SHA-256 differs.")
    return problems


def refuse(checkpoint: Path, problems: Sequence[str]) -> None:
    """Refuse a damaged checkpoint, naming the complete one before it.

    Args:
        problems: `damage` of its files.

    Raises:
        ValueError: when there are any.
    """
    if not problems:
        return
    written = (read_manifest(checkpoint) or {})["written"]
    others = checkpoints(checkpoint.parent)
    earlier = [other for other in others if (read_manifest(other) or {})["written"] < written]
    offer = (
        f"The one before it is {earlier[0]}: take that. To go on from it with autoresume=true, delete "
        f"{checkpoint} and its .json; or begin in another save_folder with load_path={earlier[0]}."
        if earlier
        else "There is none before it in this folder."
    )
    raise ValueError(f"The checkpoint {checkpoint} is damaged. {' '.join(problems)} {offer}")


def describe_file(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, as a manifest holds them."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def place_of_writing(folder: Path) -> Path:
    """Where below `folder` a checkpoint is while it is being written."""
    return folder / ".incomplete"


def start_writing(folder: Path) -> None:
    """Make the place of writing anew."""
    clear_incomplete(folder)
    place_of_writing(folder).mkdir(parents=True)


def clear_incomplete(folder: Path) -> None:
    """Remove what an interrupted or failed save left behind."""
    shutil.rmtree(place_of_writing(folder), ignore_errors=True)


def commit(written: Path, step: int, files: Mapping[str, Any]) -> Path:
    """Move a checkpoint from its place of writing into the folder: from now on it exists; returns its path.

    Args:
        written: the checkpoint below `place_of_writing`.
        files: `describe_file` of each of its files, by name.
    """
    folder = written.parent.parent
    final = folder / written.name
    manifest = {"step": step, "written": time.time(), "files": dict(files)}
    draft = _manifest_path(written)
    draft.write_text(json.dumps(manifest) + "\n")
    sync(draft)
    remove(final)
    draft.rename(_manifest_path(final))
    written.rename(final)
    link = written.parent / LATEST
    link.symlink_to(final.name)
    link.rename(folder / LATEST)
    sync(folder)
    clear_incomplete(folder)
    return final


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint: it leaves its place whole, and half-way through it is absent, not damaged."""
    away = place_of_writing(checkpoint.parent) / f"removed-{checkpoint.name}"
    away.parent.mkdir(exist_ok=True)
    if checkpoint.exists():
        checkpoint.rename(away)
    _manifest_path(checkpoint).unlink(missing_ok=True)
    if away.is_dir():
        shutil.rmtree(away)
    else:
        away.unlink(missing_ok=True)


def keep_last(folder: Path, count: int) -> None:
    """Delete all but the `count` checkpoints written last; one always stays."""
    for checkpoint in checkpoints(folder)[max(1, count) :]:
        remove(checkpoint)
    clear_incomplete(folder)


def sync(path: Path) -> None:
    """Wait until a file or a folder's entries are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _manifest_path(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}.json")


def _file(checkpoint: Path, name: str) -> Path:
    return checkpoint / name if checkpoint.is_dir() else checkpoint
