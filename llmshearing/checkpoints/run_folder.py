"""The checkpoints in a run's folder: each is complete or absent, and can be checked against its manifest.

A checkpoint is written below `.incomplete/`. When all of it is on disk, its manifest `NAME.json` is renamed
into the folder, then the checkpoint:

    {"step": 400, "written": 1763720000.0, "files": {"ep0-ba400-rank0.pt": {"bytes": 123, "sha256": "..."}}}

A name without a manifest, or a manifest without its checkpoint, is what a killed process left behind and
counts as absent. Checkpoints are ordered by step, never by a clock: those in a folder belong to one run,
because a launch moves away what it supersedes before its first step. `latest-rank0.pt` points to the one of
the last step: it is a link or, on a file system without links, a text file with the checkpoint's name.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

LATEST = "latest-rank0.pt"
CONFIG, METRICS, REPORT = "config.yaml", "metrics.jsonl", "report.html"
_NAME = re.compile(r"ep\d+-ba(\d+)(-rank0\.pt)?")
_MANIFEST = re.compile(rf"({_NAME.pattern})\.json")
_MASKS = re.compile(r"zs_s(\d+)\.safetensors")
_BLOCK = 2**24
_POINTER_BYTES = 256  # a pointer file is smaller


def checkpoint_name(epoch: int, step: int, sharded: bool) -> str:
    """The name of a checkpoint: a folder when sharded, else a file."""
    return f"ep{epoch}-ba{step}" if sharded else f"ep{epoch}-ba{step}-rank0.pt"


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of `folder`, latest step first."""
    return [path for path in _named(folder) if read_manifest(path)]


def without_manifest(folder: Path) -> list[Path]:
    """Checkpoints without a manifest, such as copies without it, latest step first."""
    return [path for path in _named(folder) if not read_manifest(path)]


def _named(folder: Path) -> list[Path]:
    """What has the name of a checkpoint, latest step first."""
    found = (path for path in folder.glob("ep*-ba*") if _NAME.fullmatch(path.name))
    return sorted(found, key=step_of, reverse=True)


def latest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint of the last step; None when there is none."""
    found = checkpoints(folder)
    return found[0] if found else None


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint, from its name."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None
    return int(match[1])


def read_manifest(checkpoint: Path) -> dict[str, Any] | None:
    """The manifest of `checkpoint`; None when there is none that can be read."""
    path = _manifest_path(checkpoint)
    try:
        manifest = json.loads(path.read_text()) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None
    return manifest if _is_manifest(manifest) else None


def _is_manifest(found: Any) -> bool:
    """Whether JSON has the form in the docstring of this file, with plain names of files."""
    if not isinstance(found, dict) or not isinstance(files := found.get("files"), dict):
        return False
    described = all(
        Path(name).name == name and isinstance(file, dict) and isinstance(file.get("bytes"), int)
        for name, file in files.items()
    )
    return described and isinstance(found.get("step"), int) and "written" in found


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
            problems.append(f"{path} has changed since it was written: its SHA-256 differs.")
    return problems


def reject(checkpoint: Path, problems: Sequence[str]) -> None:
    """Reject a damaged checkpoint, naming the complete one before it.

    Args:
        problems: `damage` of its files.

    Raises:
        ValueError: when there are any.
    """
    if not problems:
        return
    step = (read_manifest(checkpoint) or {})["step"]
    earlier = [other for other in checkpoints(checkpoint.parent) if step_of(other) < step]
    offer = (
        f"The one before it is {earlier[0]}: use that. To resume from it with autoresume=true, delete "
        f"{checkpoint} and its .json; or start in another save_folder with load_path={earlier[0]}."
        if earlier
        else "There is none before it in this folder."
    )
    raise ValueError(f"The checkpoint {checkpoint} is damaged. {' '.join(problems)} {offer}")


def follow(path: str | Path) -> Path:
    """The checkpoint that a link or a pointer file (which a run may move) points to; else `path` itself."""
    place = Path(path)
    if place.is_symlink():
        place = place.resolve()
    name = _pointed_to(place)
    return place if name is None else place.with_name(name)


def _pointed_to(path: Path) -> str | None:
    """The name in a pointer file; None when `path` is not one."""
    if path.name != LATEST or not path.is_file() or path.stat().st_size > _POINTER_BYTES:
        return None
    name = path.read_text(errors="replace").strip()
    return name if _NAME.fullmatch(name) else None


def describe_file(path: Path, after_block: Callable[[], object] = lambda: None) -> dict[str, Any]:
    """Size and SHA-256 of a file, as in a manifest; `after_block` is called after every 16 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            after_block()
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def place_of_writing(folder: Path) -> Path:
    """The folder below `folder` in which checkpoints are written."""
    return folder / ".incomplete"


def start_writing(folder: Path) -> None:
    """Create an empty place of writing."""
    clear_incomplete(folder)
    place_of_writing(folder).mkdir(parents=True)


def clear_incomplete(folder: Path) -> None:
    """Remove what an interrupted or failed save left behind."""
    shutil.rmtree(place_of_writing(folder), ignore_errors=True)


def commit(written: Path, step: int, files: Mapping[str, Any]) -> Path:
    """Move a checkpoint from its place of writing into the folder, which completes it.

    Args:
        written: the checkpoint below `place_of_writing`.
        files: `describe_file` of each of its files, by name.

    Returns:
        Its path.
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
    for other in checkpoints(folder):
        if other != final and step_of(other) == step:  # was sharded and is whole now, or vice versa
            remove(other)
    _point_to(final)
    sync(folder)
    clear_incomplete(folder)
    return final


def _point_to(checkpoint: Path) -> None:
    """Make `latest-rank0.pt` beside `checkpoint` point to it."""
    draft = place_of_writing(checkpoint.parent) / LATEST
    draft.parent.mkdir(exist_ok=True)
    try:
        draft.symlink_to(checkpoint.name)
    except OSError as error:
        if not (checkpoint.parent / LATEST).is_file():  # warn once in a run
            log.warning(
                "%s does not support symbolic links (%s): %s is a text file with the name of the last "
                "checkpoint, which the commands of this package follow",
                checkpoint.parent,
                error.strerror,
                LATEST,
            )
        draft.write_text(f"{checkpoint.name}\n")
        sync(draft)
    draft.rename(checkpoint.parent / LATEST)


def repair(folder: Path) -> None:
    """Repair what a killed process or a copy left: half a checkpoint, an old or missing pointer."""
    if not folder.is_dir():
        return
    clear_incomplete(folder)
    for path in folder.glob("ep*-ba*.json"):
        named = _MANIFEST.fullmatch(path.name)
        if named and not path.with_name(named[1]).exists():
            path.unlink()
    last, latest = latest_checkpoint(folder), folder / LATEST
    if last is None:
        if latest.is_symlink() and not latest.exists():
            latest.unlink()
        return
    if follow(latest).name == last.name:
        return
    if latest.exists() and not latest.is_symlink() and _pointed_to(latest) is None:
        _set_aside(folder, [latest])  # a copy that followed the link
    _point_to(last)
    clear_incomplete(folder)


def supersede(folder: Path, step: int, begin: Path | None, overwrite: bool, autoresume: bool) -> None:
    """Remove from `folder` what does not belong to the run that is about to compute step `step`.

    That is everything when the run starts from scratch or from elsewhere, and what lies beyond `step` when it
    resumes from a checkpoint of this folder. Checkpoints, and everything that belongs to them, move to
    `superseded-N`; `overwrite` deletes them instead, unless the run starts from one of them. Without any
    checkpoint, `autoresume` takes what is there for the start of this run, which is computed again.

    Args:
        begin: the checkpoint that the run starts from.
    """
    own = begin is not None and begin.parent.resolve() == folder.resolve()
    moving = files_of_a_run(folder, step if own and step else -1)
    checkpoints_too = any(_NAME.fullmatch(path.name) for path in moving)
    if not checkpoints_too and (own or autoresume):
        for path in moving:
            path.unlink()
    elif any(path.name not in (CONFIG, REPORT) for path in moving):
        place = _set_aside(folder, moving)
        if overwrite and not own:
            shutil.rmtree(place)
            log.warning("save_overwrite: deleted them")
        (folder / LATEST).unlink(missing_ok=True)
        repair(folder)


def files_of_a_run(folder: Path, step: int = -1) -> list[Path]:
    """Checkpoints, manifests and masks of steps after `step`; for -1, everything that a run writes."""
    found = [folder / name for name in (CONFIG, METRICS, REPORT) if step < 0 and (folder / name).exists()]
    for path in sorted(folder.iterdir()):
        named = _NAME.fullmatch(path.name.removesuffix(".json")) or _MASKS.fullmatch(path.name)
        if named and int(named[1]) > step:
            found.append(path)
    return found


def _set_aside(folder: Path, paths: Sequence[Path]) -> Path:
    """Move these to a new folder below `folder`, checkpoints after their manifests; return the new folder."""
    number = 1
    while (place := folder / f"superseded-{number}").exists():
        number += 1
    place.mkdir()
    for path in sorted(paths, key=lambda path: path.suffix != ".json"):
        path.rename(place / path.name)
    log.warning("moved %s to %s", ", ".join(sorted(path.name for path in paths)), place)
    return place


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint. It is moved away first, so that an interruption leaves it absent, not damaged."""
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
    """Delete all but the last `count` checkpoints; one always stays."""
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
