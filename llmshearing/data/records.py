"""The documents of one input file, and a count of what cannot be read.

datatrove's own readers skip the rest of a file at the first invalid byte and do not count what they
skip; `DocumentReader` continues and counts, by reason.

    bytes as stored -> unpacked, by their content -> lines or rows -> records -> texts
"""

import bz2
import codecs
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from datatrove.data import Document
from datatrove.io import DataFolder
from datatrove.pipeline.readers.base import BaseDiskReader

LONGEST = 256 << 20  # bytes of a record; tokenizing takes tens of bytes of memory for each
_PIECE = 1 << 20
_PARQUET_ROWS = 1000
_TEXT_TYPES = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_null,
)
_DAMAGED = (pa.ArrowException, OSError, EOFError, lzma.LZMAError, zlib.error, zstandard.ZstdError)


class DocumentReader(BaseDiskReader):
    """A datatrove reader for lines of JSON and for parquet that counts what it skips, up to a limit.

    Args:
        data_folder: the input folder, or where it is.
        text_key: key or column of the text.
        max_broken: records of a file that may be broken before reading stops.

    Attributes:
        documents, empty, broken: records of the file read last.
        reasons: why those were broken: for each reason how many `records`, and the `first` of them.
    """

    name = "documents"

    def __init__(self, data_folder: DataFolder | str, text_key: str, max_broken: int):
        super().__init__(data_folder, text_key=text_key)
        self.max_broken = max_broken
        self._reset()

    def _reset(self) -> None:
        self.documents = self.empty = self.broken = 0
        self.reasons: dict[str, dict[str, Any]] = {}

    def read_file(self, filepath: str) -> Iterator[Document]:  # type: ignore[override]
        """The documents of one file.

        Raises:
            ValueError: for a file that is in another format or cut off, and for more broken records
                than `max_broken`.
        """
        self._reset()
        try:
            with self.data_folder.open(filepath, "rb") as stored:
                packing = _packing(stored, filepath)
                with _unpack(stored, packing) as stream:
                    texts = self._parquet if packing == "parquet" else self._jsonl
                    for number, text in enumerate(texts(stream, filepath)):
                        if text:
                            self.documents += 1
                            yield Document(text, f"{filepath}/{number}")
                        else:
                            self.empty += 1
        except _DAMAGED as error:
            if isinstance(error, zstandard.ZstdError) and "ictionary" in str(error):
                raise ValueError(
                    f"{filepath} was compressed with a dictionary, which is not in it: decompress it with "
                    "`zstd -d -D DICTIONARY` first"
                ) from None
            raise ValueError(
                f"{filepath} is damaged or cut off ({error}): copy it again or take it out"
            ) from None

    def _jsonl(self, stream: BinaryIO, name: str) -> Iterator[str]:
        for number, line in enumerate(_lines(stream), 1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
                _check_first_line(line, name)
            if not line.strip():
                continue
            try:
                yield _text(line, self.text_key)
            except _BrokenError as broken:
                self._count_broken(name, f"line {number}", broken)

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
            for value in batch.column(0).cast(pa.large_binary()).to_pylist():
                number += 1
                try:
                    yield _decoded(value or b"")
                except _BrokenError as broken:
                    self._count_broken(name, f"row {number}", broken)

    def _count_broken(self, name: str, where: str, broken: "_BrokenError") -> None:
        self.broken += 1
        what = f"{where}: {broken}"
        reason = self.reasons.setdefault(broken.reason, {"records": 0, "first": f"{name}, {what}"})
        reason["records"] += 1
        if self.broken > self.max_broken:
            raise ValueError(
                f"{name}, {what}: more than {self.max_broken} broken records in this file; mend it, "
                "set --text_field, or allow more with --max_broken"
            )


# Unpacking


_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bz2",
    b"\xfd7zXZ\0": "xz",
    b"PAR1": "parquet",
}
_SUFFIXES = {
    **dict.fromkeys((".gz", ".gzip"), "gzip"),
    **dict.fromkeys((".zst", ".zstd"), "zstd"),
    ".bz2": "bz2",
    ".xz": "xz",
    ".parquet": "parquet",
}
_POINTER = b"version https://git-lfs"
_LARGEST_WINDOW = 2**31  # of zstd --long=31
_CHUNK = 1 << 10  # packed bytes that are unpacked at a time; of zstd they hold at most about 32 MiB
_STREAMS: dict[str, tuple[Any, ...]] = {
    "gzip": (lambda: zlib.decompressobj(wbits=31),),
    "zstd": (lambda: zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).decompressobj(),),
    "bz2": (bz2.BZ2Decompressor, _PIECE),
    "xz": (lzma.LZMADecompressor, _PIECE),
}


def _packing(stored: Any, name: str) -> str | None:
    """What a file's bytes are packed as, by their beginning and else by its name; None: plain text."""
    head = stored.read(len(_POINTER))
    stored.seek(0)
    if head == _POINTER:
        raise ValueError(
            f"{name} is a Git LFS pointer instead of the file itself: fetch it with `git lfs pull`"
        )
    for magic, packing in _MAGIC.items():
        if head.startswith(magic):
            return packing
    named = _SUFFIXES.get(Path(name).suffix.lower())
    if named is not None and not head:
        raise OSError("it has 0 bytes")
    is_text = head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{")
    return None if is_text else named


def _unpack(stored: Any, packing: str | None) -> BinaryIO:
    """A file's bytes without their packing."""
    if packing == "parquet":
        return stored
    streams = _Streams(stored, *_STREAMS[packing]) if packing else stored
    return io.BufferedReader(streams, _PIECE)


class _Streams(io.RawIOBase):
    """The bytes of one packed stream after another, with zero bytes as padding between and behind them.

    A missing end and bytes that belong to no stream are errors. The standard library's readers of bz2 and
    xz end quietly where a stream is followed by anything but another one; zstandard's does not notice a
    missing end.

    Args:
        stored: the packed file.
        start: what unpacks one stream.
        most: bytes to unpack at a time, for what takes that.
    """

    def __init__(self, stored: Any, start: Callable[[], Any], *most: int):
        super().__init__()
        self._stored, self._start, self._most = stored, start, most
        self._stream: Any = None
        self._packed = b""
        self._data = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = 0
        while size < len(buffer) and (self._data or self._advance()):
            piece = self._data[: len(buffer) - size]
            buffer[size : size + len(piece)] = piece
            self._data = self._data[len(piece) :]
            size += len(piece)
        return size

    def _advance(self) -> bool:
        """Unpack some more, which may be nothing; False at the end of the file."""
        if not self._packed and getattr(self._stream, "needs_input", True):
            self._packed = self._stored.read(_CHUNK)
            if not self._packed:
                if self._stream is not None:
                    raise EOFError("it ends within a packed stream")
                return False
        if self._stream is None:
            self._packed = self._packed.lstrip(b"\0")
            if not self._packed:
                return True
            self._stream = self._start()
        self._data = memoryview(self._stream.decompress(self._packed, *self._most))
        self._packed = b""
        if self._stream.eof:
            self._packed, self._stream = self._stream.unused_data, None
        return True


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """The lines; of one beyond LONGEST only its beginning, so that it takes no more memory than that."""
    while line := stream.readline(LONGEST + 1):
        yield line
        rest = line
        while len(line) > LONGEST and rest and not rest.endswith(b"\n"):
            rest = stream.readline(_PIECE)


# Records


class _BrokenError(ValueError):
    """A record that gives no text; `reason` is what others share with it, the message says more."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}{detail}")
        self.reason = reason


def _check_first_line(line: bytes, name: str) -> None:
    """Raise ValueError where the beginning of a file shows that it does not hold one record a line."""
    if inside := next((kind for magic, kind in _MAGIC.items() if line.startswith(magic)), None):
        raise ValueError(f"{name} is packed twice, there is {inside} inside: unpack it once")
    if line[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or b"\0" in line[:4]:
        raise ValueError(
            f"{name} is UTF-16 or UTF-32, expected UTF-8: convert it, such as with `iconv -f UTF-16 -t UTF-8`"
        )
    start = line.strip()
    if start in (b"{", b"[") or start.startswith(b"[{"):
        raise ValueError(
            f"{name} holds {'an array' if start[:1] == b'[' else 'a record over several lines'}, expected "
            f"one record a line: convert it, such as with `jq -c {'.[]' if start[:1] == b'[' else '.'}`"
        )


def _text(line: bytes, key: str) -> str:
    """The text of a record, "" where it is missing; the other fields may be unsound.

    Raises:
        _BrokenError: where there is no such text.
    """
    if len(line) > LONGEST and not line.endswith(b"\n"):
        raise _BrokenError(f"longer than {LONGEST >> 20} MiB")
    try:
        record = orjson.loads(line)
    except ValueError as error:
        record = _lenient(line, str(error))
    if not isinstance(record, dict):
        raise _BrokenError(f"a {type(record).__name__} instead of an object")
    if key not in record:
        fields = ", ".join(record)[:200].encode("utf-8", "replace").decode()
        raise _BrokenError(f"no field {key!r}", f", it has {fields}")
    text = record[key]
    if text is None or text != text:  # NaN, as pandas writes what is missing
        return ""
    if not isinstance(text, str):
        raise _BrokenError(f"{key} is {type(text).__name__}, no text")
    if not (text.isascii() or _is_sound(text)):
        raise _BrokenError("not valid UTF-8")
    return text


def _is_sound(text: str) -> bool:
    """Whether a text has no lone surrogates, which stand for invalid bytes too."""
    return _SURROGATE.search(text) is None


def _decoded(value: bytes) -> str:
    """A text of a parquet column."""
    if len(value) > LONGEST:
        raise _BrokenError(f"longer than {LONGEST >> 20} MiB")
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise _BrokenError("not valid UTF-8", f" ({error})") from None


_SURROGATE = re.compile("[\ud800-\udfff]")
# A string, to its end or the line's, or a word outside of strings.
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[^\s"{}\[\],:]+', re.DOTALL)
_JSON_WORD = re.compile(r"true|false|null|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?")
_MISSING = re.compile(r"[-+]?(?:\d\.#)?(?:[qs]?nan|inf|ind).*|undefined|none", re.IGNORECASE)
_MOST_REPAIRED = 16 << 20  # bytes of a line whose words are looked at one by one


def _lenient(line: bytes, problem: str) -> Any:
    """A record that strict JSON does not allow, as Python's json and others write it.

    NaN, infinities, numbers of any size, control characters, invalid UTF-8 and surrogates are accepted
    wherever they are.

    Raises:
        _BrokenError: with `problem` where it is not JSON for that either.
    """
    text = line.decode("utf-8", "surrogateescape")
    repairs = (lambda: text, lambda: _TOKEN.sub(_json_word, text))
    for repaired in repairs[: 2 if len(line) <= _MOST_REPAIRED else 1]:
        with suppress(ValueError, RecursionError):
            return json.loads(repaired(), strict=False, parse_int=float)
    raise _BrokenError("not valid JSON", f" ({problem})")


def _json_word(match: re.Match[str]) -> str:
    """A token of a line, as JSON knows it."""
    token = match[0]
    if token[0] == '"' or _JSON_WORD.fullmatch(token):
        return token
    return "null" if _MISSING.fullmatch(token) else "false"
