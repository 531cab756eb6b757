"""The text that goes in: which files make up a domain, how they are shared out, and their documents.

datatrove's own readers skip the rest of a file at the first byte that is no UTF-8, and do not count
what they skip; `DocumentReader` is one that goes on and counts.
"""

import codecs
import hashlib
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.data import Document
from datatrove.io import DataFolder, get_datafolder
from datatrove.pipeline.readers.base import BaseDiskReader

FORMATS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
TASK_BYTES = 64 << 20  # files are handed out in groups of about this size
_COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
_PARQUET_ROWS = 1000
_TEXT_TYPES = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_null,
)

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


def find_domains(folder: DataFolder) -> list[str]:
    """The folders below the input folder."""
    entries: Any = folder.ls("", detail=True)
    names = (entry["name"].rstrip("/") for entry in entries)
    names = (name for name in names if folder.isdir(name))  # links to folders too
    return sorted(name for name in names if not name.startswith("."))


def list_tasks(input_folder: str, domains: Sequence[str] | None) -> list[Task]:
    """All input files in groups, in an order that depends on their names only.

    Raises ValueError where there is no input, an unknown domain, one named twice, or one without a file.
    """
    folder = get_datafolder(input_folder)
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
    found = [name for name in folder.list_files(domain) if not _is_hidden(name)]
    names = [name for name in found if name.lower().endswith(FORMATS)]
    _tell_left_out(folder, [name for name in found if not name.lower().endswith(FORMATS)])
    if not names:
        raise ValueError(
            f"domain {domain} has no text below {folder.resolve_paths(domain)}: expected files "
            f"{', '.join(FORMATS)}"
        )
    group: list[Source] = []
    for name in names:
        group.append(_source(folder, name))
        if sum(file.size for file in group) >= TASK_BYTES:
            yield Task(domain, tuple(group))
            group = []
    if group:
        yield Task(domain, tuple(group))


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


def _tell_left_out(folder: DataFolder, names: list[str]) -> None:
    """Warn about what a domain holds beside text: links to folders, which are not followed, and files."""
    links = [name for name in names if folder.is_local() and folder.isdir(name)]
    files = [name for name in names if name not in links]
    if links:
        logger.warning("%d linked folders such as %s are not followed: left out", len(links), links[0])
    if files:
        kinds = ", ".join(FORMATS)
        logger.warning("%d files such as %s are none of %s: left out", len(files), files[0], kinds)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def sha256(folder: DataFolder, name: str) -> str:
    """Hash of a file's bytes as they are stored."""
    with folder.open(name, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _unpacked(stored: Any, name: str) -> BinaryIO:
    """A file's bytes without their compression; unlike others, arrow's readers notice a missing end."""
    codec = _COMPRESSION.get(Path(name).suffix.lower())
    if codec is None:
        return stored
    if not stored.seek(0, io.SEEK_END):  # which arrow takes for no text
        raise OSError("it has 0 bytes")
    stored.seek(0)
    return io.BufferedReader(pa.CompressedInputStream(stored, codec))  # type: ignore[arg-type]


class DocumentReader(BaseDiskReader):
    """datatrove's reader for both formats that counts what it passes over, and has a limit for it.

    Args:
        data_folder: the input folder, or where it is.
        text_key: key or column of the text.
        max_broken: records of a file that may be broken before reading stops.

    Attributes:
        documents, empty, broken: records of the file read last.
    """

    name = "documents"

    def __init__(self, data_folder: DataFolder | str, text_key: str, max_broken: int):
        super().__init__(data_folder, text_key=text_key)
        self.max_broken = max_broken
        self.documents = self.empty = self.broken = 0

    def read_file(self, filepath: str) -> Iterator[Document]:  # type: ignore[override]
        """The documents of one file.

        Raises ValueError for a file that is no such file or is cut off, and where more records than
        `max_broken` are broken.
        """
        self.documents = self.empty = self.broken = 0
        texts = self._parquet if filepath.lower().endswith(".parquet") else self._jsonl
        try:
            with self.data_folder.open(filepath, "rb") as stored, _unpacked(stored, filepath) as stream:
                for number, text in enumerate(texts(stream, filepath)):
                    if text:
                        self.documents += 1
                        yield Document(text, f"{filepath}/{number}")
                    else:
                        self.empty += 1
        except (pa.ArrowException, OSError) as error:
            raise ValueError(
                f"{filepath} is damaged or cut off ({error}): copy it again or take it out"
            ) from None

    def _jsonl(self, stream: BinaryIO, name: str) -> Iterator[str]:
        for number, line in enumerate(stream, 1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            try:
                record = orjson.loads(line)  # refuses bytes that are no UTF-8 too
                text = record[self.text_key]
                if text is None:
                    text = ""  # as in parquet
                if not isinstance(text, str):
                    raise TypeError(f"{self.text_key} is {type(text).__name__}, no text")
            except KeyError:
                self._count_broken(
                    name, f"line {number}: no field {self.text_key!r}, it has {', '.join(record)}"
                )
            except (ValueError, TypeError) as error:
                self._count_broken(name, f"line {number}: {error}")
            else:
                yield text

    def _parquet(self, stream: BinaryIO, name: str) -> Iterator[str]:
        file = pq.ParquetFile(stream)
        if self.text_key not in file.schema_arrow.names:
            raise ValueError(
                f"{name} has no column {self.text_key!r}, it has "
                f"{', '.join(file.schema_arrow.names)}: set --text_field"
            )
        kind = file.schema_arrow.field(self.text_key).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not any(is_text(kind) for is_text in _TEXT_TYPES):
            raise ValueError(f"{name}: column {self.text_key!r} is {kind}, expected text: set --text_field")
        number = 0
        for batch in file.iter_batches(_PARQUET_ROWS, columns=[self.text_key]):
            for value in batch.column(0).cast(pa.binary()).to_pylist():
                number += 1
                try:
                    yield (value or b"").decode()
                except UnicodeDecodeError as error:
                    self._count_broken(name, f"row {number}: {error}")

    def _count_broken(self, name: str, what: str) -> None:
        self.broken += 1
        if self.broken > self.max_broken:
            raise ValueError(
                f"{name}, {what}: more than {self.max_broken} broken records in this file; mend it, "
                "set --text_field, or allow more with --max_broken"
            )
