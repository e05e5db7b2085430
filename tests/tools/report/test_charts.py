"""Charts: the drawn points lie where the numbers say, and labels stay readable."""

from __future__ import annotations

import random
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from sana_edge.tools.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Line,
    line_chart,
    nice_ceiling,
    spread,
    tick_indices,
)


def points(svg: str, style: str) -> list[tuple[float, float]]:
    [line] = [e for e in ElementTree.fromstring(svg).iter() if e.get("class") == f"line {style}"]
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.]+),([\d.]+)", line.get("points", ""))]


def test_line_is_the_mean_over_clips_on_the_axes() -> None:
    svg = line_chart(
        "t", [Line("l", "a", [[0.0, 1.0, 4.0], [0.0, 3.0, 4.0]])], ["9", "5", "1"], x_label="x", percent=False
    )
    bottom, middle = HEIGHT - BOTTOM, (TOP + HEIGHT - BOTTOM) / 2
    assert points(svg, "a") == [(LEFT, bottom), ((LEFT + WIDTH - RIGHT) / 2, middle), (WIDTH - RIGHT, TOP)]


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_every_chart_is_valid_xml_inside_its_box(steps: int) -> None:
    scale = 10 ** random.uniform(-6, 2)
    clips = [[scale * random.random() for _ in range(steps)] for _ in range(3)]
    svg = line_chart("<a & b>", [Line("x<y", "a", clips)], [f"{s}" for s in range(steps)], x_label="&", percent=True)
    assert all(LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT - BOTTOM for x, y in points(svg, "a"))
    assert "x<y" in [e.text for e in ElementTree.fromstring(svg).iter()]


def test_ceiling_is_the_nearest_round_number_above() -> None:
    values = {0.0: 1.0, 0.09: 0.1, 0.11: 0.15, 1.0: 1.0, 2.4: 3.0, 7.0: 8.0, 9.1: 10.0, 250.0: 300.0}
    assert {value: nice_ceiling(value) for value in values} == pytest.approx(values)


def test_ticks_hold_both_ends() -> None:
    assert tick_indices(3) == [0, 1, 2]
    for count in (7, 20, 50, 1000):
        ticks = tick_indices(count)
        assert (ticks[0], ticks[-1], len(set(ticks))) == (0, count - 1, 6)


def test_labels_do_not_overlap() -> None:
    heights = [random.uniform(0, 50) for _ in range(4)]
    placed = sorted(spread(heights, gap=14))
    assert all(b - a >= 14 - 1e-9 for a, b in pairwise(placed))
