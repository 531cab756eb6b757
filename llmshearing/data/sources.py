"""Which files make up each domain, and how they are divided among tasks."""

import codecs
import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datatrove.io import DataFolder, get_datafolder
from fsspec.implementations.local import LocalFileSystem

FORMATS = ".jsonl, .ndjson or .json (each also .gz, .zst, .bz2, .xz), .parquet"
TASK_BYTES = 64 << 20  # files are handed out in groups of about this size
_PACKED = r"\.(?:gz|gzip|zst|zstd|bz2|xz|lz4|br|zip|7z)"
_LINES = re.compile(
    r"\.(?:jsonl|jsonlines|jl|ndjson|json)(?:\.(?:gz|gzip|zst|zstd|bz2|xz))?\Z", re.IGNORECASE
)
_KIND = re.compile(rf"(?:\.[a-z]\w{{0,9}})?{_PACKED}\Z|\.[a-z]\w{{0,9}}\Z", re.IGNORECASE | re.ASCII)
_SHOWN_KINDS = 8

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """One input file."""

    name: str
    """Below the input folder."""
    size: int
    """In bytes."""
    modified: str
    """When it was last written, to notice that it changed between two runs."""


@dataclass(frozen=True)
class Task:
    """A piece of work that does not depend on how many workers there are."""

    domain: str
    files: tuple[Source, ...]

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(file.size for file in self.files)


def open_folder(name: str) -> DataFolder:
    """The input folder; a name without :// is a local path, whatever characters it has."""
    if "://" in name:
        return get_datafolder(name)
    return DataFolder(str(Path(name).absolute()), fs=LocalFileSystem())


def find_domains(folder: DataFolder) -> list[str]:
    """The folders below the input folder."""
    entries: Any = folder.ls("", detail=True)
    names = (entry["name"].rstrip("/") for entry in entries)
    names = (name for name in names if folder.isdir(name))  # links to folders too
    return sorted(name for name in names if not name.startswith("."))


def list_tasks(input_folder: str, domains: Sequence[str] | None) -> list[Task]:
    """All input files in groups, in an order that depends on their names only.

    Raises:
        FileNotFoundError: where there is no input.
        ValueError: for an unknown domain, one that is named twice, and one without a file.
    """
    folder = open_folder(input_folder)
    if not folder.exists(""):
        raise FileNotFoundError(
            f"{input_folder} not found: --input is a folder with one folder for each domain"
        )
    found = find_domains(folder)
    names = list(domains) if domains else found
    if not names:
        raise ValueError(
            f"{input_folder} has no folders: expected one for each domain, such as {input_folder}/wiki"
        )
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"{input_folder} has no folder {', '.join(missing)}: it has {', '.join(found)}")
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise ValueError(f"--domains names {twice[0]} twice: name each domain once")
    return [task for name in names for task in _domain_tasks(folder, name)]


def _domain_tasks(folder: DataFolder, domain: str) -> Iterator[Task]:
    found = [name for name in folder.list_files(domain) if not is_hidden(name)]
    names = [name for name in found if holds_records(folder, name)]
    _warn_of_skipped(folder, domain, sorted(set(found) - set(names)))
    if not names:
        raise ValueError(
            f"domain {domain} has no text below {folder.resolve_paths(domain)}: expected files {FORMATS}"
        )
    group: list[Source] = []
    size = 0
    for name in names:
        group.append(_source(folder, name))
        size += group[-1].size
        if size >= TASK_BYTES:
            yield Task(domain, tuple(group))
            group, size = [], 0
    if group:
        yield Task(domain, tuple(group))


def holds_records(folder: DataFolder, name: str) -> bool:
    """Whether a file may hold documents, by its name, and a .json file by its beginning."""
    if name.lower().endswith(".parquet"):
        return True
    match = _LINES.search(name)
    return match is not None and (match[0].lower() != ".json" or _begins_with_a_record(folder, name))


def _begins_with_a_record(folder: DataFolder, name: str) -> bool:
    """Whether a file's first line begins an object and does more than that; settings have several lines.

    An array of objects counts, too: its records would be lost, so it is reported when it is read.
    """
    if folder.info(name)["type"] != "file":
        return True  # which is reported
    with folder.open(name, "rb") as stream:
        head = stream.read(64).removeprefix(codecs.BOM_UTF8).lstrip()
    if head[:1] == b"[":
        return head[1:].lstrip()[:1] == b"{"
    return head[:1] != b"" and head[1:2] not in (b"\n", b"\r")


def _source(folder: DataFolder, name: str) -> Source:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the file name {name!r} is no UTF-8: rename it") from None
    info = folder.info(name)
    if info["type"] != "file":
        raise ValueError(f"{name!r} is no regular file: take it out")
    changed = info.get("mtime") or info.get("LastModified") or info.get("ETag")
    return Source(name, info["size"], str(changed))


def _warn_of_skipped(folder: DataFolder, domain: str, names: list[str]) -> None:
    """Warn about what a domain holds beside text: links to folders, which are not followed, and files."""
    links = [name for name in names if folder.is_local() and folder.isdir(name)]
    if links:
        logger.warning("%d linked folders such as %s are not followed: skipped", len(links), links[0])
    kinds: dict[str, list[str]] = {}
    for name in sorted(set(names) - set(links)):
        kinds.setdefault(_kind(name), []).append(name)
    if kinds:
        most = sorted(kinds.items(), key=lambda kind: -len(kind[1]))
        shown = [f"{len(of_kind):,} {kind} (such as {of_kind[0]})" for kind, of_kind in most[:_SHOWN_KINDS]]
        others = sum(len(of_kind) for _, of_kind in most[_SHOWN_KINDS:])
        shown += [f"{others:,} of other kinds"] if others else []
        total = sum(map(len, kinds.values()))
        logger.warning(
            "domain %s: %s files are skipped: %s; read are %s",
            domain,
            f"{total:,}",
            ", ".join(shown),
            FORMATS,
        )


def _kind(name: str) -> str:
    """What a file is called after, such as .tar.gz."""
    match = _KIND.search(Path(name).name[1:])
    kind = match[0].lower() if match else "without a suffix"
    return ".json without a record a line" if kind == ".json" else kind


def is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def sha256(folder: DataFolder, name: str) -> str:
    """Hash of a file's bytes as they are stored."""
    with folder.open(name, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
