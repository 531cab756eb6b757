"""The index of an MDS folder and its shards, read strictly: they may come from anywhere and be damaged.

A fault raises a ValueError that names the file, before a sequence is read or a path is built from
their contents.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from streaming.base.compression import is_compression
from streaming.base.format import get_index_basename
from streaming.base.format.mds import MDSReader
from streaming.base.format.mds.encodings import get_mds_encoded_size

INDEX = get_index_basename()
AGAIN = "prepare or copy this folder again"  # of what is damaged
OTHER = "docs/data.md says which folders of other programs are read"  # of what is sound

_INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
_PLAIN = ("bytes", "str", "int", "float16", "float32", "float64", *_INTEGERS)
_PLAIN += ("json", "str_int", "str_float", "str_decimal")
_ARRAY = re.compile(r"ndarray(:(u?int(8|16|32|64)|float(16|32|64))(:[1-9]\d{0,8}(,[1-9]\d{0,8})*)?)?")
_TOKENS = re.compile(r"bytes|ndarray(:u?int(16|32|64)(:[1-9]\d{0,8})?)?")
_MOST = 2**32  # offsets have 32 bits


def is_plain_name(name: Any) -> bool:
    """Whether this is a visible, printable name in a folder, and not a path that leads out of or below it."""
    return (
        isinstance(name, str)
        and name[:1] not in ("", ".")
        and name.isprintable()
        and not {"/", "\\"} & set(name)
    )


def is_plain_path(name: Any) -> bool:
    """Whether this is a path to a place below a folder, with visible names only."""
    return isinstance(name, str) and all(map(is_plain_name, name.split("/")))


def read_index(path: Path, called: str | None = None) -> list[MDSReader]:
    """The shards that an index.json names, which lie beside it or in folders below.

    Args:
        path: the file.
        called: its name in messages, where it is not `path`.

    Raises:
        ValueError: for anything but an index of shards of token sequences.
    """
    called = called or str(path)
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{called} is not valid JSON ({error}): {AGAIN}") from None
    if not isinstance(index, dict) or index.get("version") != 2 or not isinstance(index.get("shards"), list):
        raise ValueError(f"{called} is not an index of MDS shards (version 2): {AGAIN}")
    for number, entry in enumerate(index["shards"]):
        if problem := _foreign_problem(entry):
            raise ValueError(f"{called}: shard {number}: {problem}: {OTHER}")
        if problem := _entry_problem(entry):
            raise ValueError(f"{called}: shard {number}: {problem}: {AGAIN}")
    shards = [MDSReader.from_json(str(path.parent), None, entry) for entry in index["shards"]]
    names = [info.basename for shard in shards for pair in shard.file_pairs for info in pair if info]
    if len(set(names)) < len(names):
        raise ValueError(f"{called} names a file twice: {AGAIN}")
    if any(columns_of(shard) != columns_of(shards[0]) for shard in shards):
        raise ValueError(f"{called} has shards of different columns: {OTHER}")
    return shards


def columns_of(shard: MDSReader) -> dict[str, str]:
    """Name and encoding of each column."""
    return dict(zip(shard.column_names, shard.column_encodings, strict=True))


def check_shard(shard: MDSReader, file: Path, called: str | None = None) -> None:
    """Raise ValueError unless a raw file is as long and as full as the index says, and well divided.

    Args:
        shard: what the index says.
        file: the raw file.
        called: its name in messages, where it is not `file`.
    """
    called, size = called or str(file), file.stat().st_size
    head_bytes = 4 * (shard.samples + 2)  # the number of sequences, and where each begins and the last ends
    with file.open("rb") as stream:
        head = stream.read(head_bytes)
    samples = int.from_bytes(head[:4], "little")
    if (size, samples) != (shard.raw_data.bytes, shard.samples):
        raise ValueError(
            f"{called} has {size} bytes and {samples} sequences, {INDEX} says {shard.raw_data.bytes} and "
            f"{shard.samples}: {AGAIN}"
        )
    ends = np.frombuffer(head, "<u4")[1:]
    if ends[0] < head_bytes or ends[-1] != size or (ends[1:] <= ends[:-1]).any():
        raise ValueError(f"{called} is damaged (its sequences do not lie one behind another): {AGAIN}")


def check_packed(shard: MDSReader, file: Path, called: str) -> None:
    """Raise ValueError unless a compressed file is as long as the index says."""
    assert shard.zip_data is not None
    if (size := file.stat().st_size) != shard.zip_data.bytes:
        raise ValueError(f"{called} has {size} bytes, {INDEX} says {shard.zip_data.bytes}: {AGAIN}")


# ----------------------------------------------------------------------- entries


def _foreign_problem(entry: Any) -> str | None:
    """What is valid MDS of another program, but cannot be read here."""
    if not isinstance(entry, dict):
        return None
    if isinstance(kind := entry.get("format"), str) and kind != "mds":
        return f"format is {kind!r}, expected mds"
    names: Any = entry.get("column_names")
    encodings: Any = entry.get("column_encodings")
    if not (_are_texts(names) and _are_texts(encodings) and len(names) == len(encodings)):
        return None
    for name, encoding in zip(names, encodings, strict=True):
        if name == "tokens" and not _TOKENS.fullmatch(encoding):
            return (
                f"column 'tokens' is stored as {_shown(encoding)}, expected bytes or ndarray of integers of "
                "16, 32 or 64 bits"
            )
        if name == "set" and encoding != "str":
            return f"column 'set' is stored as {_shown(encoding)}, expected str"
        if encoding not in _PLAIN and not _ARRAY.fullmatch(encoding):
            return f"column {_shown(name)} is stored as {_shown(encoding)}, expected bytes, str or numbers"
    if "tokens" not in names:
        return f"it has the columns {', '.join(map(_shown, names))}, expected a column 'tokens'"
    return None


def _entry_problem(entry: Any) -> str | None:
    """What is damaged in the entry of a shard."""
    if not isinstance(entry, dict):
        return f"{_shown(entry)} instead of keys and values"
    if entry.get("version") != 2 or entry.get("format") != "mds":
        return f"format is {_shown(entry.get('format'))}, expected mds of version 2"
    if odd := sorted(entry.keys() ^ _KEYS.keys()):
        return f"{', '.join(odd[:3])} missing or unknown"
    for key, (fits, expected) in _KEYS.items():
        if not fits(entry[key]):
            return f"{key} is {_shown(entry[key])}, expected {expected}"
    if 4 * (entry["samples"] + 2) > entry["raw_data"]["bytes"]:
        return f"{entry['samples']} sequences do not fit into {entry['raw_data']['bytes']} bytes"
    if (entry["compression"] is None) != (entry["zip_data"] is None):
        return "compression and zip_data do not go together"
    return _column_problem(entry["column_names"], entry["column_encodings"], entry["column_sizes"])


def _column_problem(names: list[str], encodings: list[str], sizes: list[int | None]) -> str | None:
    if not len(set(names)) == len(encodings) == len(sizes) == len(names):
        return "expected one encoding and one size for each column"
    for name, encoding, size in zip(names, encodings, sizes, strict=True):
        if size != get_mds_encoded_size(encoding):
            return f"the size of column {_shown(name)} is {_shown(size)}, which {encoding} has not"
    return None


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < _MOST


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_file(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"basename", "bytes", "hashes"}
        and is_plain_path(value["basename"])
        and value["basename"].rpartition("/")[2] != INDEX
        and _is_count(value["bytes"])
    )


def _shown(value: Any) -> str:
    """The beginning of a value, on one line."""
    return repr(value)[:60]


_FILE = "basename (a plain path below the folder), bytes and hashes"
_KEYS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "version": (lambda value: value == 2, "2"),
    "format": (lambda value: value == "mds", "mds"),
    "samples": (_is_count, "a whole number of sequences"),
    "raw_data": (_is_file, _FILE),
    "zip_data": (lambda value: value is None or _is_file(value), _FILE),
    "compression": (lambda value: value is None or (isinstance(value, str) and is_compression(value)), "one"),
    "column_names": (_are_texts, "a list of names"),
    "column_encodings": (_are_texts, "a list of encodings"),
    "column_sizes": (lambda value: isinstance(value, list), "a list of sizes"),
    "hashes": (_are_texts, "a list of names"),
    "size_limit": (lambda value: value is None or (type(value) is int and value > 0), "a number of bytes"),
}
