"""Line charts as inline SVG: colours come from the page's style, so that they follow light and dark."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_POINTS = 300  # more than a line on a page can show
COLOURS = 8
_WIDTH, _HEIGHT = 440, 240
_SIZES = {920: "where-wide", _WIDTH: "where-narrow"}  # widths of a wide chart, by the style's class
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 20, 10, 30  # hover.js knows these margins too


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
    legend = _legend(lines) if len(lines) > 1 else ""
    if not wide:
        return _svg(lines, x_label, from_zero, _WIDTH, "chart") + legend
    drawn = {name: _svg(lines, x_label, from_zero, w, f"chart {name}") for w, name in _SIZES.items()}
    return "".join(drawn.values()) + legend


def _svg(lines: Sequence[Line], x_label: str, from_zero: bool, width: int, classes: str) -> str:
    x_range, y_range = _ranges(lines, from_zero)
    right = width - _RIGHT
    to_x = _scale(x_range, _LEFT, right)
    to_y = _scale(y_range, _HEIGHT - _BOTTOM, _TOP)
    drawn = [
        *(_y_tick(value, to_y(value), right) for value in ticks(*y_range)),
        *(_x_tick(value, to_x(value)) for value in ticks(*x_range, most=width // 110)),
        *(_path(each, to_x, to_y) for each in lines),
        f'<text x="{right}" y="{_HEIGHT - 2}" text-anchor="end">{escape(x_label)}</text>',
    ]
    names = escape(", ".join(each.name for each in lines), quote=True)
    frame = f'data-x="{x_range[0]!r},{x_range[1]!r}" data-y="{y_range[0]!r},{y_range[1]!r}"'
    return (
        f'<svg class="{classes}" viewBox="0 0 {width} {_HEIGHT}" role="img" aria-label="{names}" {frame}>'
        f"{''.join(drawn)}</svg>"
    )


def colour(index: int) -> str:
    """The style's class of a line's colour; after COLOURS lines they come again, dotted."""
    return f"c{index % COLOURS}" + (" again" if index >= COLOURS else "")


def human(value: float) -> str:
    """A number in few characters: 1.2k, 52M, 0.35."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most `most` + 1 round numbers from `low` to `high`: multiples of 1, 2 or 5 times a power of ten."""
    span = max(high - low, 1e-12)
    power = 10 ** math.floor(math.log10(span / most))
    step = next(power * m for m in (1, 2, 5, 10) if span / (power * m) <= most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def _ranges(lines: Sequence[Line], from_zero: bool) -> tuple[tuple[float, float], tuple[float, float]]:
    x = np.concatenate([each.x for each in lines])
    y = np.concatenate([each.y for each in lines])
    low, high = float(y.min()), float(y.max())
    low = min(low, 0.0) if from_zero else low
    margin = 0.06 * (high - low) or max(abs(high), 1.0) * 0.06
    bottom = low if from_zero and low == 0 else low - margin
    left, right = float(x.min()), float(x.max())
    return (left if left < right else 0.0, right or 1.0), (bottom, high + margin)


def _scale(values: tuple[float, float], start: float, end: float) -> Callable[[float], float]:
    return lambda v: start + (v - values[0]) / (values[1] - values[0]) * (end - start)


def _y_tick(value: float, y: float, right: int) -> str:
    grid = f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>'
    return f'{grid}<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{human(value)}</text>'


def _x_tick(value: float, x: float) -> str:
    return f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 15}" text-anchor="middle">{human(value)}</text>'


def _path(each: Line, to_x, to_y) -> str:
    points = " ".join(f"{to_x(a):.1f},{to_y(b):.1f}" for a, b in zip(each.x, each.y, strict=True))
    classes = colour(each.colour) + (" dashed" if each.dashed else "")
    name = escape(each.name, quote=True)
    if len(each.x) == 1:
        x, y = points.split(",")
        return f'<circle class="{classes}" cx="{x}" cy="{y}" r="3" data-name="{name}"/>'
    return f'<polyline class="{classes}" points="{points}" data-name="{name}"/>'


def _legend(lines: Sequence[Line]) -> str:
    items = "".join(
        f'<li><svg viewBox="0 0 18 8"><path class="{colour(each.colour)}" '
        f'd="M0 4H18"/></svg>{escape(each.name)}</li>'
        for each in lines
        if not each.dashed
    )
    return f'<ul class="legend">{items}</ul>'
