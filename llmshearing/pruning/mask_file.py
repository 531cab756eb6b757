"""Files of masks on single weights: one bit-packed array for each weight, compressed.

A file is a `.npz` with an array `<HF name of the weight>.mask` of uint8 for each masked weight: its mask,
flattened row by row, 8 a byte as `numpy.packbits` makes it. Where a family keeps several weights in one (q, k
and v of Phi-3), each has an array of its own under LLaMA's name, such as `q_proj`. A file belongs to the
weights it names, so it is read together with a model.
"""

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import read_array_header_1_0, read_magic
from torch import Tensor

from llmshearing.files import first_line, replacing
from llmshearing.pruning.patterns import Pattern, bytes_of, kept_counts, unpack_bits

SUFFIX = ".mask"


class MaskFile:
    """The masks of a file, read one by one as they are asked for.

    Args:
        path: the file.
        shapes: the shape of each weight that it must hold, by HF name.

    Raises:
        FileNotFoundError: when there is no file.
        ValueError: when it is not such a file, or belongs to another model.
    """

    def __init__(self, path: str | Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.path = Path(path)
        self.shapes = dict(shapes)
        if not self.path.is_file():
            raise FileNotFoundError(f"{path} does not exist; expected a file of masks (.npz).")
        names = self._names()
        missing = [name for name in self.shapes if name not in names]
        strange = [name for name in names if name not in self.shapes]
        if missing or strange:
            example = f"it lacks {missing[0]}" if missing else f"it has {strange[0]}"
            raise ValueError(
                f"{path} holds masks of {len(names)} weights and belongs to another model: {example}, and "
                f"{len(self.shapes)} weights are expected. Make one for this model: `llmshearing oneshot`."
            )

    def __getitem__(self, name: str) -> Tensor:
        """The mask of a weight, bool in its shape.

        Raises:
            ValueError: when the file is damaged, or the weight has another size.
        """
        shape = self.shapes[name]
        size = bytes_of(math.prod(shape))
        try:
            with zipfile.ZipFile(self.path) as file, file.open(f"{name}{SUFFIX}.npy") as entry:
                read_magic(entry)
                header = read_array_header_1_0(entry)
                found = header[::2] == ((size,), np.dtype(np.uint8))
                bits = np.frombuffer(entry.read(size) if found else b"", np.uint8)
        except Exception as error:  # broken bytes can raise anything
            raise _damaged(self.path, error) from error
        if not found:
            raise ValueError(
                f"{self.path} belongs to another model: the mask of {name} is {header[2]} {list(header[0])}; "
                f"expected uint8 [{size}], the bits of {' x '.join(map(str, shape))} weights."
            )
        if len(bits) != size:
            raise _damaged(self.path, EOFError(f"the mask of {name} ends too early"))
        return unpack_bits(torch.from_numpy(bits.copy()), shape)

    def checked(self, name: str, pattern: Pattern) -> Tensor:
        """The mask of a weight, of which every block keeps as many weights as `pattern` says.

        Raises:
            ValueError: when one does not.
        """
        mask = self[name]
        counts = kept_counts(mask, pattern)
        off = int((counts != pattern.keep).sum())
        if off:
            raise ValueError(
                f"{self.path} has another pattern than {pattern}: {off:,} of {counts.numel():,} blocks of "
                f"{name} do not keep {pattern.keep} of {pattern.group} weights."
            )
        return mask

    def _names(self) -> list[str]:
        try:
            with zipfile.ZipFile(self.path) as file:
                entries = file.namelist()
        except Exception as error:
            raise _damaged(self.path, error) from error
        return [entry.removesuffix(".npy").removesuffix(SUFFIX) for entry in entries]


def write_masks(path: str | Path, bits: Mapping[str, Tensor]) -> None:
    """Write packed masks, by HF name of their weights, completely or not at all.

    Raises:
        OSError: when it cannot be written.
    """
    with replacing(Path(path)) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **{name + SUFFIX: each.numpy() for name, each in bits.items()})


def _damaged(path: Path, error: BaseException) -> ValueError:
    return ValueError(f"{path} is not a file of masks, or is damaged ({first_line(error)[:200]}).")
