"""Charts: what is drawn lies where its value is, is thinned out without bias, and reads in few characters."""

import re

import numpy as np
import pytest

from llmshearing.report.charts import COLOURS, MAX_POINTS, chart, human, line


def path(svg: str, colour: str) -> np.ndarray:
    """Points of the first path drawn in a colour of the page, [N, 2]."""
    (found, *_) = re.findall(rf'd="([^"]*)"[^>]*stroke: var\(--{colour}\)', svg)
    return np.array([[float(v) for v in pair.split()] for pair in re.split("[ML]", found)[1:]])


def scale(svg: str) -> list[tuple[float, float]]:
    """Where each grid line is, and the number beside it."""
    grid = re.findall(r'd="M [\d.]+ ([\d.]+) [^"]*"[^>]*stroke: var\(--rule\)', svg)
    labels = re.findall(r">([^<]*)</text>", svg.split("matplotlib.axis_2")[1])
    return [(float(y), float(label)) for y, label in zip(grid, labels, strict=True)]


def test_points_are_at_their_values_in_the_colours_of_the_page() -> None:
    svg = chart([line("loss", [0, 5, 10], [2.0, 4.0, 3.0], 3)], "steps")
    ticks = scale(svg)
    assert len(ticks) >= 3
    (y0, value0), *_, (y1, value1) = ticks
    drawn = path(svg, "c3")
    assert value0 + (drawn[:, 1] - y0) / (y1 - y0) * (value1 - value0) == pytest.approx(
        [2.0, 4.0, 3.0], abs=0.01
    )
    assert np.diff(drawn[:, 0]) == pytest.approx(drawn[1, 0] - drawn[0, 0])
    assert not re.search(r"(stroke|fill): #", svg)


def test_shares_begin_at_zero_and_others_where_they_are() -> None:
    lines = [line("a", [0, 1], [0.4, 0.6], 0)]
    assert scale(chart(lines, "steps", from_zero=True))[0][1] == 0
    assert scale(chart(lines, "steps"))[0][1] == pytest.approx(0.4)


def test_a_wide_chart_is_drawn_for_phones_too() -> None:
    svg = chart([line("a", [0, 1], [0.4, 0.6], 0)], "steps", wide=True)
    assert re.findall(r'class="chart (where-\w+)" viewBox="0 0 (\d+)', svg) == [
        ("where-wide", "920"),
        ("where-narrow", "440"),
    ]


@pytest.mark.parametrize("last", [100, 500_000])
def test_the_label_of_the_last_tick_is_inside(last: float) -> None:
    svg = chart([line("loss", [0, last], [2.0, 4.0], 0)], "steps", wide=True)
    for width, drawn in re.findall(r'viewBox="0 0 (\d+) \d+"(.*?)</svg>', svg, re.S):
        labels = drawn.split("matplotlib.axis_1")[1].split("matplotlib.axis_2")[0]
        found = re.findall(r'<text [^>]*middle[^>]* x="([\d.]+)"[^>]*>([^<]*)<', labels)
        assert len(found) > 1
        for x, label in found:
            assert float(x) + len(label) * 11 * 0.6 / 2 <= int(width)


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
    dot = chart([line("a", [3], [1.0], 0)], "steps")
    assert len(re.findall(r"<use [^>]*stroke: var\(--c0\)", dot)) == 1
    assert "Nothing logged yet" in chart([line("a", [], [], 0)], "steps")
    again = chart([line("a", [0, 1], [0, 1], i) for i in (0, COLOURS)], "steps")
    assert len(re.findall(r"stroke-dasharray: [^;]*; [^;]*; stroke: var\(--c0\)", again)) == 1
    assert 'class="c0 again"' in again


@pytest.mark.parametrize(
    ("value", "text"), [(0.25, "0.25"), (1234, "1.234k"), (5e7, "50M"), (-2e9, "-2B"), (0, "0")]
)
def test_numbers_in_few_characters(value: float, text: str) -> None:
    assert human(value) == text
