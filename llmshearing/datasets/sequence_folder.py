"""The sequences of one MDS folder: tokens of one length and type, below the vocabulary."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmshearing.datasets.remote import Remote
from llmshearing.datasets.shard_folder import ShardFolder

TOKEN_DTYPES = ("uint16", "uint32", "int64")
ORIGINAL_DTYPES = ("uint16", "int64")
"""What the original stored tokens as: data without a manifest."""


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
        length_is_known: False where no manifest vouches for `seq_len`; messages then doubt it.

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
        tokens = np.frombuffer(sample["tokens"], self._unsigned)
        highest = int(tokens.max())
        if self.vocab_size is not None and highest >= self.vocab_size:
            doubt = "" if self._length_is_known else f", or max_seq_len {self.seq_len} is not its length"
            raise ValueError(
                f"{self._shards.file_of(index)}: sequence {index} holds token {highest}, the vocabulary has "
                f"{self.vocab_size}: the data was made with another tokenizer than the model's{doubt}"
            )
        return TokenSequence(tokens.astype(np.int64), sample.get("set", ""))

    def domain(self, index: int) -> str:
        """Name of the domain that was written beside this sequence."""
        return self._shards.entry(index).get("set", "")

    def _find_dtype(self, allowed: Sequence[str]) -> np.dtype:
        """The type of the stored tokens, by the size of the first sequence."""
        num_bytes = self._shards.token_bytes
        if num_bytes is None:
            return np.dtype(allowed[0])
        file = self._shards.file_of(0)
        found = token_dtype(num_bytes, self.seq_len, str(file))
        if found not in allowed:
            lacking = "" if self._length_is_known else ", or copy the manifest.json beside the splits too"
            raise ValueError(
                f"{file}: {num_bytes} bytes for {self.seq_len} tokens are {found}, expected "
                f"{' or '.join(allowed)}: correct max_seq_len or is_uint16{lacking}"
            )
        return np.dtype(found)
