"""Charts: what is drawn lies where its value is, is thinned out without bias, and reads in few characters."""

import re
from importlib.resources import files

import numpy as np
import pytest

from llmshearing.report import charts
from llmshearing.report.charts import COLOURS, MAX_POINTS, chart, human, line, ticks


def points(svg: str) -> np.ndarray:
    found = re.findall(r'polyline[^>]*points="([^"]*)"', svg)
    return np.array([[float(v) for v in pair.split(",")] for pair in found[0].split()])


def test_points_are_at_their_values() -> None:
    svg = chart([line("loss", [0, 5, 10], [2.0, 4.0, 3.0], 0)], "steps")
    drawn = points(svg)
    low, high = (float(v) for v in re.findall(r'data-y="([^,]*),([^"]*)"', svg)[0])
    # The margins that hover.js reads values back with, too.
    values = low + (210 - drawn[:, 1]) / 200 * (high - low)
    assert values == pytest.approx([2.0, 4.0, 3.0], abs=0.01)
    assert drawn[:, 0] == pytest.approx([50, 235, 420])
    script = files("llmshearing.report").joinpath("hover.js").read_text()
    margins = dict(re.findall(r"\b(LEFT|RIGHT|TOP|BOTTOM) = (\d+)", script))
    assert margins == {name: str(getattr(charts, f"_{name}")) for name in ("LEFT", "RIGHT", "TOP", "BOTTOM")}


@pytest.mark.parametrize("last", [100, 500_000])
def test_the_label_of_the_last_tick_is_inside(last: float) -> None:
    svg = chart([line("loss", [0, last], [2.0, 4.0], 0)], "steps", wide=True)
    for width, drawn in re.findall(r'viewBox="0 0 (\d+) \d+"(.*?)</svg>', svg):
        for x, label in re.findall(r'<text x="([\d.]+)" [^>]*"middle">(.*?)</text>', drawn):
            half = len(label) * 12.5 * 0.6 / 2  # the style's largest letters
            assert float(x) + half <= int(width)


def test_long_lines_are_thinned_out_to_means() -> None:
    x = np.arange(3201)
    thin = line("loss", x, 2 * x + 1, 0)
    assert len(thin.x) == MAX_POINTS
    assert thin.y == pytest.approx(2 * thin.x + 1)
    counts = np.diff(np.linspace(0, 3201, MAX_POINTS + 1).astype(int))
    assert np.average(thin.y, weights=counts) == pytest.approx(np.mean(2 * x + 1))


def test_names_cannot_become_markup() -> None:
    svg = chart([line('<script>"x"', [0, 1], [0, 1], 0), line("b", [0, 1], [1, 2], 1)], "<b>")
    assert "<script>" not in svg
    assert "<b>" not in svg
    assert "&lt;script&gt;&quot;x&quot;" in svg


def test_legend_names_solid_lines_only() -> None:
    lines = [line("head", [0, 1], [0, 1], 0), line("target: head", [0, 1], [1, 1], 0, dashed=True)]
    legend = chart(lines, "steps").split("</svg>", 1)[1]
    assert "head</li>" in legend
    assert "target" not in legend


def test_one_point_is_a_dot_nothing_is_said_and_colours_come_again() -> None:
    assert "<circle" in chart([line("a", [3], [1.0], 0)], "steps")
    assert "Nothing logged yet" in chart([line("a", [], [], 0)], "steps")
    assert 'class="c0 again"' in chart([line("a", [0, 1], [0, 1], COLOURS)], "steps")


@pytest.mark.parametrize(
    ("value", "text"), [(0.25, "0.25"), (1234, "1.23k"), (5e7, "50M"), (-2e9, "-2B"), (0, "0")]
)
def test_numbers_in_few_characters(value: float, text: str) -> None:
    assert human(value) == text


@pytest.mark.parametrize(("low", "high"), [(0, 1), (1.9, 4.2), (-5, 10), (0, 3200), (2.001, 2.0012), (7, 7)])
def test_ticks_are_round_few_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    slack = 1e-6 * max(high - low, 1e-12)
    assert 1 <= len(found) <= 6
    assert all(low - slack <= tick <= high + slack for tick in found)
