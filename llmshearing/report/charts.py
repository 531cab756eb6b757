"""Line charts as inline SVG: matplotlib draws them, and their colours and letters are the page's.

matplotlib writes fixed colours. It is given stand-ins, which variables of the page's style then replace, so
that a chart follows light and dark.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

MAX_POINTS = 300  # more than a line on a page can show
COLOURS = 8
_HEIGHT, _NARROW, _WIDE = 240, 440, 920
_POINTS_AN_INCH = 72  # of matplotlib's SVG
_LINES = [f"#0101{i:02x}" for i in range(COLOURS)]
_TEXT, _GRID = "#010200", "#010201"
_STYLE = {
    **{colour: f"var(--c{i})" for i, colour in enumerate(_LINES)},
    _TEXT: "var(--quiet)",
    _GRID: "var(--rule)",
}
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # letters stay letters
    "font.size": 11,
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "xtick.labelcolor": _TEXT,
    "ytick.labelcolor": _TEXT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 7,
    "grid.color": _GRID,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "lines.solid_joinstyle": "round",
}

_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


@dataclass(frozen=True)
class Line:
    """One line of a chart, x and y [N]; `colour` from 0; `dashed` is for a target, left out of the legend."""

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    colour: int
    dashed: bool = False


def line(name: str, x: ArrayLike, y: ArrayLike, colour: int, dashed: bool = False) -> Line:
    """A `Line` thinned out: of more than MAX_POINTS points, means of equal numbers of neighbours."""
    xs, ys = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(xs) > MAX_POINTS:
        parts = np.linspace(0, len(xs), MAX_POINTS + 1).astype(int)
        counts = np.diff(parts)
        xs, ys = (np.add.reduceat(v, parts[:-1]) / counts for v in (xs, ys))
    return Line(name, xs, ys, colour, dashed)


def chart(lines: Sequence[Line], x_label: str, from_zero: bool = False, wide: bool = False) -> str:
    """An SVG of `lines` over a common x, and their legend.

    Args:
        from_zero: let the y axis begin at 0, for shares.
        wide: as wide as two charts where the page has room for two.
    """
    lines = [each for each in lines if len(each.x)]
    if not lines:
        return '<p class="none">Nothing logged yet.</p>'
    sizes = {"chart where-wide": _WIDE, "chart where-narrow": _NARROW} if wide else {"chart": _NARROW}
    drawn = [_as_html(_draw(lines, x_label, from_zero, width), lines, name) for name, width in sizes.items()]
    return "".join(drawn) + (_legend(lines) if len(lines) > 1 else "")


def human(value: float) -> str:
    """A number in few characters: 1.2k, 52M, 0.35."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def _draw(lines: Sequence[Line], x_label: str, from_zero: bool, width: int) -> str:
    """What matplotlib writes for a chart `width` wide; ids in it are the chart's own."""
    ids = f"{width} {x_label} {lines}"
    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": ids}):
        figure = Figure(figsize=(width / _POINTS_AN_INCH, _HEIGHT / _POINTS_AN_INCH), layout="constrained")
        axes = figure.add_subplot(frameon=False)
        axes.margins(x=0, y=0.06)
        axes.grid(axis="y")
        axes.set_xlabel(x_label, loc="right")
        for axis, ticks in ((axes.xaxis, width // 110), (axes.yaxis, 5)):
            axis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 5, 10]))
            axis.set_major_formatter(lambda value, _: human(value))
        for each in lines:
            again = each.colour >= COLOURS
            dot = "o" if len(each.x) == 1 else None
            style = "--" if each.dashed else ":" if again else "-"
            colour = _LINES[each.colour % COLOURS]
            axes.plot(each.x, each.y, color=colour, linestyle=style, marker=dot, clip_on=False)
        if from_zero:
            axes.set_ylim(bottom=min(0.0, *(each.y.min() for each in lines)))
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata=_NO_METADATA)
    return file.getvalue()


def _as_html(svg: str, lines: Sequence[Line], classes: str) -> str:
    """The chart as part of a page: sized and coloured by its style, with words for who cannot see it."""
    names = escape(", ".join(each.name for each in lines), quote=True)
    head, drawing = svg[svg.index("<svg") :].split(">", 1)
    box = re.findall('viewBox="[^"]*"', head)[0]
    coloured = re.sub("|".join(_STYLE), lambda found: _STYLE[found[0]], drawing)
    return f'<svg class="{classes}" {box} role="img" aria-label="{names}">{coloured}'


def _legend(lines: Sequence[Line]) -> str:
    items = "".join(
        f'<li><svg viewBox="0 0 18 8"><path class="{_legend_classes(each.colour)}" d="M0 4H18"/></svg>'
        f"{escape(each.name)}</li>"
        for each in lines
        if not each.dashed
    )
    return f'<ul class="legend">{items}</ul>'


def _legend_classes(colour: int) -> str:
    """The style's classes for a line's colour; after COLOURS lines they come again, dotted."""
    return f"c{colour % COLOURS}" + (" again" if colour >= COLOURS else "")
