"""One MDS folder of token sequences of one length, read at random, downloaded where it is remote.

A sequence is one `tokens` entry of an MDS shard, so fetching it is one open, seek and read. No
shared memory and no worker processes: what several processes of a node share is the folder, and
a file lock, which the operating system releases with its owner, guards what they write there.
"""

import bisect
import itertools
import json
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from streaming.base.compression import decompress
from streaming.base.format import get_index_basename, reader_from_json
from streaming.base.format.mds import MDSReader
from streaming.base.storage import CloudDownloader
from streaming.base.util import retry

logger = logging.getLogger(__name__)

TOKEN_DTYPES = ("uint16", "uint32", "int64")
INDEX = get_index_basename()


def token_dtype(num_bytes: int, seq_len: int, where: str) -> str:
    """Name of the integer type of a sequence of `seq_len` tokens that takes `num_bytes` bytes.

    Raises ValueError naming `where` if none of TOKEN_DTYPES has that size.
    """
    for name in TOKEN_DTYPES:
        if num_bytes == seq_len * np.dtype(name).itemsize:
            return name
    lengths = ", ".join(f"{num_bytes // np.dtype(name).itemsize} of {name}" for name in TOKEN_DTYPES)
    raise ValueError(
        f"{where}: a sequence takes {num_bytes} bytes ({lengths} tokens), expected {seq_len} tokens: "
        "set max_seq_len to the length the data was prepared with, or prepare it again"
    )


class Remote:
    """A folder elsewhere, and the share of the local disk that its files may take.

    Args:
        url: the folder, as mosaicml-streaming names them.
        download_retry: how often a failed download is tried again.
        download_timeout: seconds a download may take.
        cache_limit: bytes of shards to keep in this process's share, None for all.
    """

    def __init__(self, url: str, download_retry: int, download_timeout: float, cache_limit: int | None):
        self.url = url.rstrip("/")
        self.download_retry = download_retry
        self.download_timeout = download_timeout
        self.cache_limit = cache_limit
        self._kept: OrderedDict[MDSReader, int] = OrderedDict()
        self._bytes = 0

    def download(self, name: str, path: Path) -> None:
        """Fetch the file `name` to `path`, which appears whole or not at all."""
        partial = path.with_name(path.name + ".partial")
        partial.unlink(missing_ok=True)

        @retry(num_attempts=self.download_retry + 1)
        def attempt() -> None:
            CloudDownloader.direct_download(f"{self.url}/{name}", str(partial), self.download_timeout)

        try:
            attempt()
        except Exception as error:  # whatever the client of this kind of storage raises
            raise OSError(
                f"cannot download {self.url}/{name} ({type(error).__name__}: {error}): check data_remote"
            ) from error
        partial.replace(path)

    def used(self, shard: MDSReader) -> None:
        """Note that a shard was read, and remove the least recently read ones beyond the limit."""
        if shard in self._kept:
            self._kept.move_to_end(shard)
            return
        self._kept[shard] = shard.get_max_size()
        self._bytes += self._kept[shard]
        while self.cache_limit is not None and self._bytes > self.cache_limit and len(self._kept) > 1:
            oldest, size = self._kept.popitem(last=False)
            self._bytes -= size
            oldest.evict()


@dataclass(frozen=True)
class TokenSequence:
    """What one entry of a folder holds."""

    tokens: NDArray[np.int64]
    """Token ids, [S]."""
    domain: str
    """Name of its domain as written when the data was prepared, "" where it was not."""


class SequenceFolder:
    """The sequences of one MDS folder, as a list.

    Args:
        path: the folder, holding index.json and shards.
        seq_len: tokens of each sequence.
        dtypes: what the tokens may be stored as, of TOKEN_DTYPES.
        vocab_size: ids from here on are refused, None to accept all.
        remote: where missing files come from, `folder` below it.
        folder: this folder's name below the remote one.

    Raises FileNotFoundError for a missing index or shard, ValueError for one that is broken or
    holds other data than expected; each names the file and what to do.
    """

    def __init__(
        self,
        path: Path,
        seq_len: int,
        dtypes: Sequence[str] = TOKEN_DTYPES,
        vocab_size: int | None = None,
        remote: Remote | None = None,
        folder: str = "",
    ):
        self.path = path
        self.seq_len = seq_len
        self.vocab_size = vocab_size
        self._remote = remote
        self._folder = folder
        self._shards = [self._open_shard(entry) for entry in self._read_index()["shards"]]
        self._ends = list(itertools.accumulate(shard.samples for shard in self._shards))
        self.dtype = self._find_dtype(dtypes)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> TokenSequence:
        shard, sample = self._entry(index)
        data = sample["tokens"]
        if len(data) != self._bytes:
            raise ValueError(
                f"{self._file(shard)}: sequence {index} takes {len(data)} bytes, the others {self._bytes}: "
                "the shard is damaged, prepare or copy it again"
            )
        tokens = np.frombuffer(data, self.dtype)
        highest = int(tokens.max())
        if self.vocab_size is not None and highest >= self.vocab_size:
            raise ValueError(
                f"{self._file(shard)}: sequence {index} holds token {highest}, the vocabulary has "
                f"{self.vocab_size}: the data was made with another tokenizer than the model's"
            )
        return TokenSequence(tokens.astype(np.int64), sample.get("set", ""))

    def domain(self, index: int) -> str:
        """Name of the domain that was written beside this sequence."""
        return self._entry(index)[1].get("set", "")

    def _entry(self, index: int) -> tuple[MDSReader, dict[str, Any]]:
        """The shard that holds this sequence, and its columns."""
        at = bisect.bisect_right(self._ends, index)
        shard = self._shards[at]
        offset = index - (self._ends[at - 1] if at else 0)
        if self._remote is None:
            return shard, shard[offset]
        while True:
            try:
                self._provide(shard)
                sample = shard[offset]
            except FileNotFoundError:  # another process of this node evicted it just now
                continue
            self._remote.used(shard)
            return shard, sample

    def _read_index(self) -> dict[str, Any]:
        index = self.path / INDEX
        if self._remote is not None:
            self._download(INDEX)
        if not index.is_file():
            raise FileNotFoundError(
                f"{index} not found: expected a folder made by `python -m llmshearing.data.prepare`; "
                "check data_local, the split and set_names"
            )
        try:
            return json.loads(index.read_text())
        except ValueError as error:
            raise ValueError(
                f"{index} is not valid JSON ({error}): prepare or copy this folder again"
            ) from None

    def _open_shard(self, entry: dict[str, Any]) -> MDSReader:
        if entry.get("format") != "mds" or "tokens" not in entry.get("column_names", ()):
            raise ValueError(f"{self.path / INDEX}: expected MDS shards with a column `tokens`")
        shard = reader_from_json(str(self.path), None, entry)
        assert isinstance(shard, MDSReader)
        shard.validate(allow_unsafe_types=False)
        if self._file(shard).exists():
            self._check(shard)
        elif self._remote is None:
            self._provide(shard)
        return shard

    def _file(self, shard: MDSReader) -> Path:
        return self.path / shard.raw_data.basename

    def _check(self, shard: MDSReader) -> None:
        """Raise ValueError unless the shard's size and number of sequences are those of the index."""
        file = self._file(shard)
        with file.open("rb") as stream:
            samples = int.from_bytes(stream.read(4), "little")
        found = {"bytes": file.stat().st_size, "sequences": samples}
        expected = {"bytes": shard.raw_data.bytes, "sequences": shard.samples}
        if found != expected:
            raise ValueError(
                f"{file} has {found['bytes']} bytes and {found['sequences']} sequences, {INDEX} says "
                f"{expected['bytes']} and {expected['sequences']}: prepare or copy this folder again"
            )

    def _provide(self, shard: MDSReader) -> None:
        """Make sure that the shard's raw file is there: download it, decompress it."""
        raw = self._file(shard)
        if raw.exists():
            return
        if shard.zip_data is None:
            self._download(shard.raw_data.basename)
        else:
            packed = self.path / shard.zip_data.basename
            self._download(packed.name)
            with self._lock():
                if not raw.exists():
                    partial = raw.with_name(raw.name + ".partial")
                    partial.write_bytes(decompress(shard.compression, packed.read_bytes()))
                    partial.replace(raw)
        self._check(shard)

    def _download(self, name: str) -> None:
        """Fetch a file of this folder unless it is here."""
        path = self.path / name
        if path.exists():
            return
        if self._remote is None:
            raise FileNotFoundError(
                f"{path} not found, though {INDEX} names it: prepare or copy this folder again"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock():
            if not path.exists():
                self._remote.download(f"{self._folder}/{name}", path)

    def _lock(self) -> FileLock:
        return FileLock(self.path / ".lock")

    def _find_dtype(self, allowed: Sequence[str]) -> np.dtype:
        """The type of the stored tokens, by the size of the first sequence."""
        if not len(self):
            return np.dtype(allowed[0])
        shard, sample = self._entry(0)
        self._bytes = len(sample["tokens"])
        found = token_dtype(self._bytes, self.seq_len, str(self._file(shard)))
        if found not in allowed:
            raise ValueError(
                f"{self._file(shard)}: {self._bytes} bytes for {self.seq_len} tokens are {found}, expected "
                f"{' or '.join(allowed)}: correct max_seq_len or is_uint16"
            )
        return np.dtype(found)
