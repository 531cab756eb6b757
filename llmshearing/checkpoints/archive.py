"""Checks that the archive that torch.save writes holds what its pickle promises.

torch reads as many bytes from the start of a member as the pickle says. A member that is shorter would be
filled silently with whatever follows it in the file or in memory. The members are read by `zipfile` here, so
a file in which torch would find others is rejected.
"""

import io
import pickle
import struct
import zipfile
from typing import IO, Any

_MEMBER = b"PK\x03\x04"
_END, _LOCATOR, _END_64 = b"PK\x05\x06", b"PK\x06\x07", b"PK\x06\x06"
_ENDS = 22 + 20 + 56  # bytes of these records, the last ones of a file
_HEADER = 30  # bytes of a member's own header before its name and extra field
_ITEMSIZES = {  # bytes an element, by class of storage; UntypedStorage counts bytes, and later types use it
    "ComplexDouble": 16,
    "ComplexFloat": 8,
    "Double": 8,
    "Long": 8,
    "Float": 4,
    "Int": 4,
    "QInt32": 4,
    "BFloat16": 2,
    "Half": 2,
    "Short": 2,
}


def is_archive(file: IO[bytes]) -> bool:
    """Whether torch reads a file as a zip file, which it knows by the first bytes alone."""
    file.seek(0)
    return file.read(len(_MEMBER)) == _MEMBER


def check_archive(file: IO[bytes]) -> None:
    """Compare the members of a zip file of torch.save with its pickle and with each other.

    A file that is not a zip file passes: torch reads the older format by the length of each member.

    Raises:
        ValueError: when the directory is not where torch looks for it, or a member is compressed, duplicated
            or missing, overlaps the next, or its size is not that of its storage.
    """
    if not is_archive(file):
        return
    _check_directory(file)
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        if len({name.lower() for name in members}) < len(archive.infolist()):  # torch ignores the case
            raise ValueError("a name occurs twice in the archive")
        starts = _starts(file, archive)
    pickles = [name for name in members if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(f"it holds {len(pickles)} data.pkl; expected one")
    file.seek(starts[pickles[0]])  # not by zipfile: checkpoints are written without checksums
    reader = _Storages(io.BytesIO(file.read(members[pickles[0]].file_size)))
    reader.load()
    folder = pickles[0].removesuffix("data.pkl")
    for key, size in reader.sizes.items():
        found = members.get(f"{folder}data/{key}")
        if found is None or found.file_size != size:
            held = "nothing" if found is None else f"{found.file_size:,} bytes"
            raise ValueError(f"storage {key} has {held}; its tensors need {size:,}")


def _check_directory(file: IO[bytes]) -> None:
    """Check that the directory lies at its recorded offset and up to its end records, these ending the file.

    torch takes the directory at that offset, zipfile the one before the end records.

    Raises:
        ValueError: when the two may differ.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - _ENDS))
    ends = file.read().rjust(_ENDS, b"\0")
    end, locator, end_64 = ends[-22:], ends[-42:-22], ends[:-42]
    length, start, comment = struct.unpack("<2IH", end[12:])
    stop, found = size - len(end), end.startswith(_END) and not comment
    if locator.startswith(_LOCATOR):
        length, start = struct.unpack("<2Q", end_64[40:])
        stop = size - _ENDS
        found &= end_64.startswith(_END_64) and struct.unpack("<Q", locator[8:16])[0] == stop
    if not found or start + length != stop:
        raise ValueError("its directory is not where its end records say")


def _starts(file: IO[bytes], archive: zipfile.ZipFile) -> dict[str, int]:
    """The offset of each member's bytes.

    Raises:
        ValueError: when a member is compressed or overlaps the next.
    """
    infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
    limits = [info.header_offset for info in infos[1:]] + [archive.start_dir]
    starts = {}
    for info, limit in zip(infos, limits, strict=True):
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise ValueError(f"{info.filename} is compressed, which torch.save never does")
        file.seek(info.header_offset + 26)
        name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
        starts[info.filename] = info.header_offset + _HEADER + name + extra
        if starts[info.filename] + info.file_size > limit:
            raise ValueError(f"{info.filename} overlaps what follows it")
    return starts


class _Anything:
    """Stands for every object of a pickle: accepts every operation and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __call__(self, *args: Any, **kwargs: Any) -> "_Anything":
        return self

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def append(self, value: Any) -> None: ...

    def extend(self, values: Any) -> None: ...

    def add(self, value: Any) -> None: ...


class _StorageType(_Anything):
    """A storage class of torch; `itemsize` is the bytes of one element."""

    itemsize = 1


class _Storages(pickle.Unpickler):
    """Reads through a pickle without building anything, and notes the size of every storage it refers to."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.sizes: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch.storage" or (module == "torch" and name.endswith("Storage")):
            itemsize = _ITEMSIZES.get(name.removesuffix("Storage"), 1)
            return type(name, (_StorageType,), {"itemsize": itemsize})
        return _Anything

    def persistent_load(self, pid: Any) -> _Anything:
        kind, storage, key, _, elements = pid
        if kind != "storage" or not (isinstance(storage, type) and issubclass(storage, _StorageType)):
            raise ValueError("it refers to something that is not a storage")
        size = elements * storage.itemsize
        if self.sizes.setdefault(str(key), size) != size:
            raise ValueError(f"storage {key} has two sizes")
        return _Anything()
