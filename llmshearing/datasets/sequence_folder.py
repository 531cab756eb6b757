"""The sequences of one MDS folder: tokens of one length and type, below the vocabulary."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmshearing.datasets.remote import Remote
from llmshearing.datasets.shard_folder import ShardFolder

TOKEN_DTYPES = ("uint16", "uint32", "int64")
"""What tokens are stored as, whether signed or not: no id is negative."""
_USUAL_VOCABULARY = 2**18
_LARGE_VOCABULARY = 2**19


def token_dtype(num_bytes: int, seq_len: int, where: str) -> str:
    """Name of the integer type of a sequence of `seq_len` tokens that takes `num_bytes` bytes.

    Raises:
        ValueError: naming `where` if none of TOKEN_DTYPES has that size.
    """
    for name in TOKEN_DTYPES:
        if num_bytes == seq_len * np.dtype(name).itemsize:
            return name
    lengths = ", ".join(f"{num_bytes // np.dtype(name).itemsize} of {name}" for name in TOKEN_DTYPES)
    raise ValueError(
        f"{where}: a sequence takes {num_bytes} bytes ({lengths} tokens), expected {seq_len} tokens: "
        "set max_seq_len to the length the data was prepared with, or prepare it again"
    )


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
        vocab_size: ids from here on are rejected, None to accept all.
        remote: where missing files come from, `folder` below it.
        folder: this folder's name below the remote one.
        length_is_known: False where no manifest vouches for `seq_len`; messages then doubt it.

    Raises:
        FileNotFoundError: for a missing index or shard.
        ValueError: for one that is damaged or does not hold the expected data.
    """

    def __init__(
        self,
        path: Path,
        seq_len: int,
        dtypes: Sequence[str] = TOKEN_DTYPES,
        vocab_size: int | None = None,
        remote: Remote | None = None,
        folder: str = "",
        length_is_known: bool = True,
    ):
        self.path = path
        self.seq_len = seq_len
        self.vocab_size = vocab_size
        self._length_is_known = length_is_known
        self._shards = ShardFolder(path, remote, folder)
        self.dtype = self._find_dtype(dtypes)
        self._unsigned = np.dtype(
            f"u{self.dtype.itemsize}"
        )  # in which a negative id is beyond the vocabulary

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: int) -> TokenSequence:
        sample = self._shards.entry(index)
        tokens = self._ids(sample["tokens"], index)
        highest = int(tokens.max())
        if self.vocab_size is not None and highest >= self.vocab_size:
            doubt = "" if self._length_is_known else f", or max_seq_len {self.seq_len} is not its length"
            signed = int(np.array(highest, self._unsigned).view(f"i{self.dtype.itemsize}"))
            also = f" ({signed} as a signed number)" if signed < 0 else ""
            raise ValueError(
                f"{self._shards.file_of(index)}: sequence {index} holds token {highest}{also}, the "
                f"vocabulary has {self.vocab_size}: the data was made with another tokenizer than the "
                f"model's{doubt}"
            )
        return TokenSequence(tokens.astype(np.int64), sample.get("set", ""))

    def domain(self, index: int) -> str:
        """Name of the domain that was written beside this sequence."""
        return self._shards.entry(index).get("set", "")

    @property
    def names_domains(self) -> bool:
        """Whether a domain is written beside the sequences."""
        return "set" in self._shards.entry(0)

    def only(self, domain: str) -> "DomainSequences":
        """The sequences of one domain, of a folder that holds several."""
        return DomainSequences(self, self._by_domain.get(domain, []))

    @cached_property
    def _by_domain(self) -> dict[str, list[int]]:
        """Which sequences each domain has; reads the whole folder."""
        found: dict[str, list[int]] = {}
        for index in range(len(self)):
            found.setdefault(self.domain(index), []).append(index)
        return found

    def _ids(self, stored: Any, index: int) -> NDArray[Any]:
        """The ids of a sequence, from bytes or from an array that tells its own type."""
        if isinstance(stored, np.ndarray) and (stored.ndim, stored.itemsize) != (1, self.dtype.itemsize):
            raise ValueError(
                f"{self._shards.file_of(index)}: sequence {index} is an array of {stored.dtype} of shape "
                f"{stored.shape}, expected {self.seq_len} tokens as in the first one"
            )
        return np.frombuffer(stored, self._unsigned)

    def _find_dtype(self, allowed: Sequence[str]) -> np.dtype:
        """The type of the stored tokens: that of the first sequence's array, or else by its size.

        Raises:
            ValueError: where it is another than allowed, or another length explains the tokens better.
        """
        num_bytes = self._shards.token_bytes
        if num_bytes is None:
            return np.dtype(allowed[0])
        file, stored = self._shards.file_of(0), self._shards.entry(0)["tokens"]
        if isinstance(stored, np.ndarray):
            found = _array_dtype(stored, self.seq_len, str(file))
        else:
            found = token_dtype(num_bytes, self.seq_len, str(file))
            self._check_width(stored, found, str(file))
        if found not in allowed:
            lacking = "" if self._length_is_known else ", or copy the manifest.json beside the splits too"
            raise ValueError(
                f"{file}: {num_bytes} bytes for {self.seq_len} tokens are {found}, expected "
                f"{' or '.join(allowed)}: correct max_seq_len or is_uint16{lacking}"
            )
        return np.dtype(found)

    def _check_width(self, stored: bytes, found: str, where: str) -> None:
        """Raise ValueError where a believed length makes one token of several, or several of one.

        A token of 2 bytes beside one of 2 bytes is beyond every vocabulary as one of 4; one of 8 bytes is, as
        two of 4, a token and a 0, through the whole sequence.
        """
        if self._length_is_known:
            return
        width, highest = np.dtype(found).itemsize, {}
        for size in (2, 4, 8):
            if len(stored) % size == 0:
                highest[size] = int(np.frombuffer(stored, f"u{size}").max())
        most = self.vocab_size or _LARGE_VOCABULARY
        others = [
            size for size in highest if size > width and 0 < highest[size] < min(most, _USUAL_VOCABULARY)
        ]
        if highest[width] >= most:
            others += [size for size in highest if size < width and highest[size] < most]
        if others:
            fits = " or ".join(f"{len(stored) // size} of {size} bytes" for size in others)
            raise ValueError(
                f"{where}: {len(stored)} bytes for {self.seq_len} tokens would be {found} with tokens up "
                f"to {highest[width]}, but look like {fits}: set max_seq_len to the length the data was "
                "prepared with"
            )


def _array_dtype(stored: NDArray[Any], seq_len: int, where: str) -> str:
    """Name of the type of TOKEN_DTYPES that a stored array's tokens have.

    Raises:
        ValueError: naming `where` for an array of another length or kind.
    """
    found = {np.dtype(name).itemsize: name for name in TOKEN_DTYPES}.get(stored.itemsize)
    if stored.dtype.kind not in "iu" or found is None or stored.ndim != 1:
        raise ValueError(
            f"{where}: tokens are an array of {stored.dtype} of shape {stored.shape}, expected a row of "
            "integers of 2, 4 or 8 bytes"
        )
    if stored.size != seq_len:
        raise ValueError(
            f"{where}: a sequence has {stored.size} tokens ({stored.dtype}), expected {seq_len}: set "
            "max_seq_len to the length the data was prepared with, or prepare it again"
        )
    return found


class DomainSequences:
    """Some of the sequences of a folder, as a list: those of one domain.

    Args:
        folder: the folder that holds them.
        indices: their places in it.
    """

    def __init__(self, folder: SequenceFolder, indices: Sequence[int]):
        self.path = folder.path
        self._folder = folder
        self._indices = np.asarray(indices, np.int64)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> TokenSequence:
        return self._folder[int(self._indices[index])]
