"""Small MDS folders whose tokens say where they come from."""

from pathlib import Path

import numpy as np
from streaming.base.format.mds import MDSWriter

SEQ_LEN = 8


def write_folder(
    path: Path,
    samples: int,
    domain: str = "cc",
    dtype: str = "uint16",
    seq_len: int = SEQ_LEN,
    compression: str | None = None,
    per_shard: int = 5,
) -> Path:
    """Sequence i of the folder holds i, i + 1, ..."""
    columns = {"tokens": "bytes", "set": "str"}
    size = per_shard * (seq_len * np.dtype(dtype).itemsize + len(domain) + 12) + 250
    with MDSWriter(out=str(path), columns=columns, size_limit=size, compression=compression) as writer:
        for i in range(samples):
            writer.write({"tokens": np.arange(i, i + seq_len, dtype=dtype).tobytes(), "set": domain})
    return path
