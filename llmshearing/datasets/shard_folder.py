"""One MDS folder, read at random, downloaded where it is remote.

A sequence is one entry of an MDS shard, so fetching it is one open, seek and read. No shared memory
and no worker processes: what several processes of a node share is the folder, and a file lock, which
the operating system releases with its owner, guards what they write there.
"""

import bisect
import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from streaming.base.compression import decompress
from streaming.base.format.mds import MDSReader

from llmshearing.datasets.mds_index import AGAIN, INDEX, check_packed, check_shard, columns_of, read_index
from llmshearing.datasets.remote import Remote
from llmshearing.files import LOCK, lock


class ShardFolder:
    """The entries of one MDS folder, as a list.

    Args:
        path: the folder, holding index.json and shards.
        remote: where missing files come from, `folder` below it.
        folder: this folder's name below the remote one.

    Raises:
        FileNotFoundError: for a missing index or shard.
        ValueError: for a damaged one.
    """

    def __init__(self, path: Path, remote: Remote | None = None, folder: str = ""):
        self.path = path
        self._remote = remote
        self._folder = folder
        self._shards = self._read_index()
        for shard in self._shards:
            self._check_present(shard)
        if remote is not None:
            remote.present([shard for shard in self._shards if self._is_here(shard)])
        self._ends = list(itertools.accumulate(shard.samples for shard in self._shards))
        self.token_bytes: int | None = None  # of the tokens of every entry, known from the first
        if self._shards:
            self.token_bytes = memoryview(self.entry(0)["tokens"]).nbytes

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def columns(self) -> dict[str, str]:
        """Name and encoding of what an entry holds; of a folder without entries nothing."""
        return columns_of(self._shards[0]) if self._shards else {}

    def entry(self, index: int) -> dict[str, Any]:
        """The columns of one sequence, by name; its tokens are bytes or an array.

        Raises:
            ValueError: naming the file where it is damaged there.
        """
        shard, offset = self._place(index)
        sample = self._read(shard, offset) if self._remote is None else self._fetch(shard, offset)
        size = memoryview(sample["tokens"]).nbytes
        if self.token_bytes not in (None, size):
            raise ValueError(
                f"{self._file(shard)}: sequence {offset} of it takes {size} bytes, the others "
                f"{self.token_bytes}: sequences of one length are expected; if they were written so, the "
                f"shard is damaged: {AGAIN}"
            )
        return sample

    def file_of(self, index: int) -> Path:
        """The file that holds this sequence."""
        return self._file(self._place(index)[0])

    def _place(self, index: int) -> tuple[MDSReader, int]:
        """The shard that holds this sequence, and where in it."""
        at = bisect.bisect_right(self._ends, index)
        return self._shards[at], index - (self._ends[at - 1] if at else 0)

    def _fetch(self, shard: MDSReader, offset: int) -> dict[str, Any]:
        """An entry of a shard that is downloaded unless it is here."""
        assert self._remote is not None
        while True:
            try:
                self._provide(shard)
                sample = self._read(shard, offset)
            except FileNotFoundError:  # another process of this node evicted it just now
                continue
            self._remote.used(shard)
            return sample

    def _read(self, shard: MDSReader, offset: int) -> dict[str, Any]:
        try:
            return shard[offset]
        except (
            ArithmeticError,
            LookupError,
            TypeError,
            ValueError,
        ) as error:  # what the reader meets in bytes that are no entry
            raise ValueError(
                f"{self._file(shard)}: sequence {offset} of it is damaged ({error}): {AGAIN}"
            ) from None

    def _read_index(self) -> list[MDSReader]:
        index = self.path / INDEX
        if self._remote is not None:
            self._download(INDEX, read_index)
        if not index.is_file():
            if parts := sorted(path.parent.name for path in self.path.glob(f"*/{INDEX}")):
                raise FileNotFoundError(
                    f"{index} not found, but {len(parts)} folders below have one, such as {parts[0]}: "
                    "name one of them, or put them together with `llmshearing merge` or streaming's "
                    "merge_index"
                )
            raise FileNotFoundError(
                f"{index} not found: expected a folder made by `llmshearing prepare`; check "
                "the path: in a configuration data_local, the split and set_names"
            )
        return read_index(index)

    def _check_present(self, shard: MDSReader) -> None:
        """Check a shard that is here; of a folder that is all here, each one."""
        if self._remote is None:
            self._provide(shard)
        with suppress(FileNotFoundError):  # not downloaded yet, or evicted just now
            check_shard(shard, self._file(shard))

    def _file(self, shard: MDSReader) -> Path:
        return self.path / shard.raw_data.basename

    def _is_here(self, shard: MDSReader) -> bool:
        """Whether a shard takes room on the disk, as it is or compressed."""
        packed = shard.zip_data
        return self._file(shard).exists() or (packed is not None and (self.path / packed.basename).exists())

    def _provide(self, shard: MDSReader) -> None:
        """Make sure that the shard's raw file is there and whole: download it, decompress it."""
        raw = self._file(shard)
        if raw.exists():
            return
        if shard.zip_data is None:
            self._download(shard.raw_data.basename, lambda file, called: check_shard(shard, file, called))
            return
        packed = self.path / shard.zip_data.basename
        self._download(shard.zip_data.basename, lambda file, called: check_packed(shard, file, called))
        with self._lock():
            if not raw.exists():
                self._unpack(shard, packed, raw)

    def _unpack(self, shard: MDSReader, packed: Path, raw: Path) -> None:
        """Decompress a shard, which appears whole or not at all."""
        check_packed(shard, packed, str(packed))
        try:
            data = decompress(shard.compression, packed.read_bytes())
        except FileNotFoundError:  # evicted just now
            raise
        except Exception as error:  # each way to compress has errors of its own
            raise ValueError(f"{packed} cannot be decompressed ({error}): {AGAIN}") from error
        partial = raw.with_name(raw.name + ".partial")
        partial.write_bytes(data)
        check_shard(shard, partial, str(raw))
        partial.replace(raw)

    def _download(self, name: str, check: Callable[[Path, str], object]) -> None:
        """Fetch a file of this folder unless it is here."""
        path = self.path / name
        if path.exists():
            return
        if self._remote is None:
            raise FileNotFoundError(f"{path} not found, though {INDEX} names it: {AGAIN}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock():
            if not path.exists():
                self._remote.download(f"{self._folder}/{name}", path, check)

    def _lock(self) -> AbstractContextManager[object]:
        return lock(self.path / LOCK, wait=True)
