"""Line charts as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmsada_hpc.observe import svg

WIDTH, HEIGHT = 400, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 16, 12, 36
# More points than pixels only make the page heavy
MAX_POINTS = 600


@dataclass(frozen=True)
class Line:
    """One curve. `ys` may hold NaN (a gap); `colour` is CSS; `faint` draws the noise behind a smoothed curve."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: str
    dash: str = ""
    faint: bool = False
    points: bool = False


@dataclass(frozen=True)
class Level:
    """A horizontal line; its label belongs in the legend."""

    y: float
    label: str
    dash: str = "1.5 3"
    colour: str = "var(--ink)"


@dataclass(frozen=True)
class Scale:
    """Data to drawing coordinates, with the plot area's edges as the ends of the ranges."""

    x0: float
    x1: float
    y0: float
    y1: float

    def x(self, value: float) -> float:
        """Position from the left edge of the drawing."""
        return LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Position from the upper edge of the drawing."""
        return HEIGHT - BOTTOM - (value - self.y0) / (self.y1 - self.y0) * (HEIGHT - TOP - BOTTOM)


def _thinned(xs: Sequence[float], ys: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """Keeps the lowest and the highest point of every bin, so that no spike is lost."""
    if len(xs) <= MAX_POINTS:
        return xs, ys
    values = np.asarray(ys, float)
    kept: set[int] = {0, len(xs) - 1}
    for chunk in np.array_split(np.arange(len(xs)), MAX_POINTS // 2):
        part = values[chunk]
        kept.update(
            (int(chunk[0]),) if np.isnan(part).all() else (chunk[np.nanargmin(part)], chunk[np.nanargmax(part)])
        )
        kept.update(int(index) for index in chunk[np.isnan(part)][:1])
    order = sorted(int(index) for index in kept)
    return [xs[index] for index in order], [ys[index] for index in order]


def _path(line: Line, scale: Scale) -> str:
    commands, pen = [], "M"
    for x, y in zip(*_thinned(line.xs, line.ys), strict=True):
        if not math.isfinite(y):
            pen = "M"
            continue
        clipped = min(max(y, scale.y0), scale.y1)
        commands.append(f"{pen}{scale.x(x):.1f} {scale.y(clipped):.1f}")
        pen = "L"
    return "".join(commands)


def _draw_line(line: Line, scale: Scale) -> str:
    width, opacity = (1.0, 0.28) if line.faint else (1.8, 1.0)
    drawn = svg.stroke(_path(line, scale), line.colour, width=width, opacity=opacity, dash=line.dash)
    if not line.points:
        return drawn
    finite = [(x, y) for x, y in zip(line.xs, line.ys, strict=True) if math.isfinite(y)]
    hints = [f"{line.name}, step {x:g}: {y:.1f}" for x, y in finite]
    dots = [
        svg.dot(scale.x(x), scale.y(y), line.colour, radius=2.6, hint=hint)
        for (x, y), hint in zip(finite, hints, strict=True)
    ]
    return drawn + "".join(dots)


def _frame(scale: Scale, *, x_label: str, y_label: str) -> str:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for value in svg.ticks(scale.y0, scale.y1):
        y = scale.y(value)
        parts.append(svg.styled(f"M{LEFT} {y:.1f}H{right}", "rule"))
        parts.append(svg.text(LEFT - 6, y + 3.5, svg.tick_label(value), kind="tick", anchor="end"))
    for value in svg.ticks(scale.x0, scale.x1):
        x = scale.x(value)
        parts.append(svg.styled(f"M{x:.1f} {bottom}v4", "axis"))
        parts.append(svg.text(x, bottom + 15, svg.tick_label(value), kind="tick", anchor="middle"))
    parts.append(svg.styled(f"M{LEFT} {bottom}H{right}", "axis"))
    parts.append(svg.text((LEFT + right) / 2, HEIGHT - 5, x_label, kind="name", anchor="middle"))
    parts.append(svg.text(11, (TOP + bottom) / 2, y_label, kind="name", anchor="middle", turned=-90))
    return "".join(parts)


def _draw_level(level: Level, scale: Scale) -> str:
    y = scale.y(level.y)
    return svg.stroke(f"M{LEFT} {y:.1f}H{WIDTH - RIGHT}", level.colour, width=1.4, dash=level.dash)


def _draw_change(x: float, label: str, scale: Scale) -> str:
    at = scale.x(x)
    shift, anchor = (3, "start") if at < WIDTH - RIGHT - 60 else (-3, "end")
    line = svg.styled(f"M{at:.1f} {TOP}V{HEIGHT - BOTTOM}", "change")
    return line + svg.text(at + shift, TOP + 8, label, kind="mark", anchor=anchor)


def _value_range(lines: Sequence[Line], levels: Sequence[Level]) -> tuple[float, float]:
    """Shows all values, but lets the faintly drawn noise leave the frame where it is rare and far."""
    solid = [y for line in lines if not line.faint for y in line.ys if math.isfinite(y)]
    noise = [y for line in lines if line.faint for y in line.ys if math.isfinite(y)]
    if noise:
        solid += [float(np.quantile(noise, 0.01)), float(np.quantile(noise, 0.99))]
    solid += [level.y for level in levels]
    low, high = min(solid, default=0.0), max(solid, default=1.0)
    low = 0.0 if 0 <= low < 0.6 * high else low
    margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return (low if low == 0 else low - margin), high + margin


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    y_label: str,
    x_label: str = "global step",
    levels: Sequence[Level] = (),
    changes: Sequence[tuple[float, str]] = (),
    y_range: tuple[float, float] | None = None,
    x_range: tuple[float, float] | None = None,
) -> str:
    """An SVG line chart; `changes` are labelled vertical lines (x, label); values outside `y_range` are clipped."""
    xs = [x for line in lines for x in line.xs]
    x0, x1 = x_range or (min(xs, default=0.0), max(xs, default=1.0))
    y0, y1 = y_range or _value_range(lines, levels)
    scale = Scale(x0, x1 if x1 > x0 else x0 + 1, y0, y1)
    body = [_frame(scale, x_label=x_label, y_label=y_label)]
    body += [_draw_change(x, label, scale) for x, label in changes]
    body += [_draw_line(line, scale) for line in sorted(lines, key=lambda line: not line.faint)]
    body += [_draw_level(level, scale) for level in levels]
    return svg.drawing(body, width=WIDTH, height=HEIGHT, label=title)
