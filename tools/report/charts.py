"""Inline SVG line charts: no script, colours from the page's style sheet, readable by a screen reader."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

WIDTH, HEIGHT = 520, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 74, 14, 34


@dataclass(frozen=True)
class Line:
    """A series with a value at each x: its name, its colour class in the style sheet, and the values of each clip.

    The line is the mean over clips, the band behind it their range.
    """

    name: str
    style: str
    clips: Sequence[Sequence[float]]

    @property
    def means(self) -> list[float]:
        return [sum(column) / len(column) for column in zip(*self.clips, strict=True)]

    @property
    def lows(self) -> list[float]:
        return [min(column) for column in zip(*self.clips, strict=True)]

    @property
    def highs(self) -> list[float]:
        return [max(column) for column in zip(*self.clips, strict=True)]


def line_chart(title: str, lines: Sequence[Line], ticks: Sequence[str], *, x_label: str, percent: bool) -> Markup:
    """A chart of lines from zero upwards over `ticks` (the label of each x), as an <svg> element."""
    top = nice_ceiling(max((max(line.highs) for line in lines), default=0.0))
    count = len(ticks)

    def x(index: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (index / (count - 1) if count > 1 else 0.5)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top)

    def label(value: float) -> str:
        return f"{100 * value:.3g}%" if percent else f"{value:.3g}"

    described = "; ".join(f"{line.name} from {label(line.means[0])} to {label(line.means[-1])}" for line in lines)
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}: {escape(described)}">'
    ]
    for fraction in (0.0, 0.25, 0.5, 0.75, 1.0):
        height = y(top * fraction)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">')
        parts.append(f"{label(top * fraction)}</text>")
    for index in tick_indices(count):
        parts.append(f'<text class="tick" x="{x(index):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">')
        parts.append(f"{escape(ticks[index])}</text>")
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    parts.append(f'<text class="tick" x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">{escape(x_label)}</text>')
    for line in lines:
        parts += _drawn(line, [x(i) for i in range(count)], y)
    for line, height in zip(lines, spread([y(line.means[-1]) for line in lines]), strict=True):
        parts.append(f'<text class="name {line.style}" x="{WIDTH - RIGHT + 8}" y="{height + 4:.1f}">')
        parts.append(f"{escape(line.name)}</text>")
    return Markup("".join([*parts, "</svg>"]))


def _drawn(line: Line, xs: Sequence[float], y: Callable[[float], float]) -> list[str]:
    def points(values: Sequence[float]) -> list[str]:
        return [f"{a:.1f},{y(v):.1f}" for a, v in zip(xs, values, strict=True)]

    shapes = []
    if len(line.clips) > 1:
        outline = " ".join([*points(line.highs), *reversed(points(line.lows))])
        shapes.append(f'<polygon class="band {line.style}" points="{outline}"/>')
    if len(xs) == 1:
        shapes.append(f'<circle class="dot {line.style}" cx="{xs[0]:.1f}" cy="{y(line.means[0]):.1f}" r="3"/>')
    shapes.append(f'<polyline class="line {line.style}" points="{" ".join(points(line.means))}"/>')
    return shapes


def nice_ceiling(value: float) -> float:
    """The smallest of 1, 1.5, 2, 3, 4, 5, 8 times a power of ten that is not below `value`; 1 for zero."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 1.5, 2, 3, 4, 5, 8, 10) if factor * power >= value * (1 - 1e-9))


def tick_indices(count: int, most: int = 6) -> list[int]:
    """At most `most` indices, evenly over 0 .. count - 1, ends included."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def spread(heights: Sequence[float], gap: float = 14) -> list[float]:
    """Label positions near `heights`, at least `gap` apart, in the order given."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = list(heights)
    for previous, current in pairwise(order):
        placed[current] = max(placed[current], placed[previous] + gap)
    return placed
