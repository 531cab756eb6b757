"""Maps of masks as small PNGs: opaque where gates are open, clear where they are closed.

Only the alpha channel differs between pixels, so that a map reads on light and on dark paper.

L layers, T evaluations, D hidden.
"""

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from llmshearing.report.reading import Run
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.units import KINDS, block_of

INK = (42, 120, 214)
MAX_COLUMNS, MAX_ROWS = 320, 320


def png(openness: NDArray[np.floating]) -> str:
    """A data URI of a picture of `openness` [rows, columns], 0 closed to 1 open."""
    alpha = np.round(np.clip(openness, 0, 1) * 255).astype(np.uint8)
    pixels = np.empty((*alpha.shape, 4), np.uint8)
    pixels[..., :3], pixels[..., 3] = INK, alpha
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def pooled(
    values: NDArray[np.floating], rows: int = MAX_ROWS, columns: int = MAX_COLUMNS
) -> NDArray[np.floating]:
    """Means over neighbours, so that at most `rows` x `columns` values are left of [R, C]."""
    for axis, most in ((0, rows), (1, columns)):
        size = values.shape[axis]
        if size > most:
            starts = np.linspace(0, size, most + 1).astype(int)
            counts = np.diff(starts)
            sums = np.add.reduceat(values, starts[:-1], axis=axis)
            values = sums / (counts[:, None] if axis == 0 else counts)
    return values


class MaskHistory:
    """The masks of a run over time, read once and kept as small as they are shown.

    A unit counts as open when its gate and that of the block around it are.

    Attributes:
        steps: after how many steps, [T].
        blocks: for each kind that masks whole blocks, which of them are open, [L, T].
        intermediate: the open share of each layer's MLP, [L, T].
        heads: for each kind of heads, which are open, T times [L, H].
        hidden: the open share of (neighbouring) hidden dimensions, [<= MAX_ROWS, T].
    """

    def __init__(self, run: Run) -> None:
        self.steps = list(run.mask_files)
        columns: dict[str, list[NDArray[np.floating]]] = {}
        for step in self.steps:
            for kind, gates in _open(run.masks(step), run.source).items():
                shown = gates.mean(1) if kind == "intermediate" else gates
                shown = pooled(gates[:, None])[:, 0] if kind == "hidden" else shown
                columns.setdefault(kind, []).append(shown)
        self.heads = {kind: columns.pop(kind) for kind in ("head", "kv_head") if kind in columns}
        maps = {kind: np.stack(shares, axis=1) for kind, shares in columns.items()}
        self.hidden = maps.pop("hidden", None)
        self.intermediate = maps.pop("intermediate", None)
        self.blocks = maps

    def closed(self, kind: str) -> list[int]:
        """Layers whose blocks of mask `kind` ended closed."""
        return np.flatnonzero(self.blocks[kind][:, -1] == 0).tolist()


def _open(gates: dict[str, NDArray[np.float32]], arch: Architecture) -> dict[str, NDArray[np.float32]]:
    """1 where a unit and the block around it are open, else 0, in the shapes of `gates`."""
    is_open = {kind: (gate > 0).astype(np.float32) for kind, gate in gates.items()}
    blocks = {gate: value for kind, value in is_open.items() for gate in KINDS[kind].gates}
    for kind, value in is_open.items():
        around = blocks.get(block_of(kind, arch) or "")
        if around is not None:
            is_open[kind] = value * around[:, None]
    return is_open


def moments(count: int, most: int = 6) -> list[int]:
    """Indices of at most `most` of `count` moments, evenly spread, the first and the last among them."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(most, count))}) if count else []
