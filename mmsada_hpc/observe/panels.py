"""Drawings that are not curves: confusion matrix, embedding, runs compared on one axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmsada_hpc.observe import svg
from mmsada_hpc.observe.embedding import Embedding
from mmsada_hpc.observe.page import SOURCE, TARGET, colour
from mmsada_hpc.observe.wording import percent

# Above this many classes the counts would not fit into their cells; they stay as tooltips.
_MAX_WRITTEN = 16
_MAX_LETTERS = 14
_SIDE = 300


def _shortened(name: str, limit: int) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"


@dataclass(frozen=True)
class _Matrix:
    """Where the confusion matrix lies in its drawing."""

    classes: Sequence[str]
    heads: Sequence[str]
    cell: float
    left: float
    top: float

    def x(self, column: float) -> float:
        return self.left + self.cell * column

    def y(self, row: float) -> float:
        return self.top + self.cell * row


def confusion_svg(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Rows are the true class, columns the predicted one; the shade is the share of the row, the number the count.

    `confusion` is (K, K) or (K, K + 1); the last of K + 1 columns counts predictions outside the classes. A column with
    the recall in percent is added.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    rows, columns = counts.shape
    letters = min(_MAX_LETTERS, max(len(name) for name in classes))
    heads = [*classes, *(["other"] if columns > rows else [])]
    cell = max(12.0, min(34.0, 300 / columns))
    matrix = _Matrix(classes, heads, cell, left=12 + 6.2 * letters, top=14 + 5.2 * letters)
    width, height = matrix.x(columns) + 46, matrix.y(rows) + 20
    parts = [
        svg.text(matrix.x(index + 0.5), matrix.top - 5, _shortened(name, _MAX_LETTERS), kind="tick", turned=-45)
        for index, name in enumerate(heads)
    ]
    parts.append(svg.text(width - 4, matrix.top - 5, "recall", kind="tick", anchor="end"))
    parts += [_confusion_row(counts[row], row, matrix) for row in range(rows)]
    parts.append(svg.text(matrix.x(columns / 2), height - 4, "predicted", kind="name", anchor="middle"))
    return svg.drawing(parts, width=width, height=height, label="Confusion matrix", max_width=1.25 * width)


def _confusion_row(counts: NDArray[np.float64], row: int, matrix: _Matrix) -> str:
    total, middle, name = counts.sum(), matrix.y(row + 0.5) + 4, matrix.classes[row]
    parts = [svg.text(matrix.left - 6, middle, _shortened(name, _MAX_LETTERS), kind="tick", anchor="end")]
    for column, count in enumerate(counts):
        share = count / total if total else 0.0
        hint = f"{name} seen as {matrix.heads[column]}: {count:.0f} of {total:.0f}"
        fill, opacity = (SOURCE, 0.08 + 0.54 * share) if share else ("var(--grid)", 1.0)
        corner = matrix.x(column) + 0.75, matrix.y(row) + 0.75
        parts.append(svg.square(*corner, matrix.cell - 1.5, fill, opacity=opacity, hint=hint))
        if count and len(matrix.classes) <= _MAX_WRITTEN:
            parts.append(svg.text(matrix.x(column + 0.5), middle, f"{count:.0f}", kind="cell", anchor="middle"))
    recall = percent(100 * counts[row] / total) if total else "-"
    parts.append(svg.text(matrix.x(len(counts)) + 42, middle, recall, kind="tick", anchor="end"))
    return "".join(parts)


def circle_sample(css_colour: str) -> str:
    """A source clip, for `page.key`."""
    return f'<circle cx="10" cy="6" r="3.6" style="fill:{css_colour}"/>'


def cross_sample(css_colour: str) -> str:
    """A target clip, for `page.key`."""
    return f'<path d="M6.5 2.5l7 7m0 -7l-7 7" fill="none" style="stroke:{css_colour}" stroke-width="1.7"/>'


def embedding_svg(embedding: Embedding, *, by: str, classes: int, title: str) -> str:
    """Points of both domains: a dot for source, a cross for target; coloured by "class" or by "domain"."""
    span = np.ptp(embedding.xy, axis=0).max() or 1.0
    centre = (embedding.xy.max(axis=0) + embedding.xy.min(axis=0)) / 2
    places = (embedding.xy - centre) / span * (_SIDE - 24) + _SIDE / 2
    groups = embedding.label if by == "class" else embedding.domain
    size = 5.5 if len(places) <= 400 else 4.0
    parts = []
    for group in np.unique(groups).tolist():
        css = _group_colour(group, by=by, classes=classes)
        for domain in (0, 1):
            chosen = places[(groups == group) & (embedding.domain == domain)]
            if len(chosen):
                parts.append(_marks(chosen, css, is_source=domain == 0, size=size))
    edge = svg.stroke(f"M.5 .5H{_SIDE - 0.5}V{_SIDE - 0.5}H.5Z", "var(--rule)", width=1)
    return svg.drawing([edge, *parts], width=_SIDE, height=_SIDE, label=title)


def _group_colour(group: int, *, by: str, classes: int) -> str:
    if by == "domain":
        return SOURCE if group == 0 else TARGET
    return colour(group, classes) if group >= 0 else "var(--muted)"


def _marks(places: NDArray[np.float64], css: str, *, is_source: bool, size: float) -> str:
    # all marks of a group are one path: a dot is a line of no length with round caps
    if is_source:
        path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in places)
        return svg.stroke(path, css, width=size, opacity=0.75, cap="round")
    arm = 0.45 * size
    cross = f"l{2 * arm:.1f} {2 * arm:.1f}m0 -{2 * arm:.1f}l-{2 * arm:.1f} {2 * arm:.1f}"
    path = "".join(f"M{x - arm:.1f} {y - arm:.1f}{cross}" for x, y in places)
    return svg.stroke(path, css, width=1.4, opacity=0.85)


@dataclass(frozen=True)
class Dots:
    """One line of the comparison: (name, value) of every run; `error` is a standard error in the values' unit."""

    name: str
    points: Sequence[tuple[str, float]]
    mean: float | None
    error: float | None
    colour: str


def dot_range(lines: Sequence[Dots], chance: float | None) -> tuple[float, float]:
    """A range, in percent, that shows all points, whiskers and chance."""
    ends = [value + sign * (line.error or 0.0) for line in lines for _, value in line.points for sign in (-1, 1)]
    ends += [chance] if chance is not None else []
    margin = 0.06 * (max(ends) - min(ends)) or 5.0
    return max(0.0, min(ends) - margin), min(100.0, max(ends) + margin)


def dot_plot(lines: Sequence[Dots], *, x_label: str, chance: float | None, ends: tuple[float, float]) -> str:
    """Methods below each other, their runs as points on one axis with a stroke at the mean, chance dashed."""
    width, row, top = 400, 22, 18
    left = 14 + 6.0 * min(26, max(len(line.name) for line in lines))
    bottom = top + row * len(lines)
    low, high = ends

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - 16)

    parts = []
    for value in svg.ticks(low, high, count=4):
        parts.append(svg.styled(f"M{x(value):.1f} {top - 4}V{bottom}", "rule"))
        parts.append(svg.text(x(value), bottom + 14, svg.tick_label(value), kind="tick", anchor="middle"))
    if chance is not None:
        parts.append(svg.styled(f"M{x(chance):.1f} {top - 4}V{bottom}", "change"))
        parts.append(svg.text(x(chance), top - 7, "chance", kind="mark", anchor="middle"))
    for index, line in enumerate(lines):
        y = top + row * (index + 0.5)
        parts.append(svg.text(left - 8, y + 3.5, _shortened(line.name, 26), kind="tick", anchor="end"))
        parts.append(_dot_line(line, y, x, ends))
    parts.append(svg.text((left + width - 16) / 2, bottom + 30, x_label, kind="name", anchor="middle"))
    return svg.drawing(parts, width=width, height=bottom + 36, label="Runs compared")


def _dot_line(line: Dots, y: float, x: Callable[[float], float], ends: tuple[float, float]) -> str:
    parts, values = [], [value for _, value in line.points]
    if line.error is not None:
        whisker = x(max(ends[0], values[0] - line.error)), x(min(ends[1], values[0] + line.error))
        parts.append(svg.stroke(f"M{whisker[0]:.1f} {y}H{whisker[1]:.1f}", line.colour, width=1.5))
    if line.mean is not None:
        parts.append(svg.stroke(f"M{x(line.mean):.1f} {y - 7}v14", line.colour, width=2.4))
    radius, opacity = (4.2, 1.0) if len(values) == 1 else (3.6, 0.7)
    for name, value in line.points:
        parts.append(svg.dot(x(value), y, line.colour, radius=radius, hint=f"{name}: {value:.1f}", opacity=opacity))
    return "".join(parts)


def reliability_svg(bins: Sequence[Sequence[float | None]]) -> str:
    """Accuracy against mean confidence, both in percent, a point a bin of (count, confidence, accuracy)."""
    side, left, top = 250, 46, 12
    filled = [(n, sure, right) for n, sure, right in bins if n and sure is not None and right is not None]
    total = sum(n for n, _, _ in filled) or 1

    def at(sure: float, right: float) -> tuple[float, float]:
        return left + sure / 100 * side, top + (100 - right) / 100 * side

    parts = []
    for value in (0, 25, 50, 75, 100):
        x, y = at(value, value)
        parts.append(svg.styled(f"M{left} {y:.1f}h{side}M{x:.1f} {top}v{side}", "rule"))
        parts.append(svg.text(left - 6, y + 3.5, str(value), kind="tick", anchor="end"))
        parts.append(svg.text(x, top + side + 15, str(value), kind="tick", anchor="middle"))
    parts.append(svg.styled(f"M{left} {top + side}L{left + side} {top}", "change"))
    places = [at(sure, right) for _, sure, right in filled]
    parts.append(svg.stroke("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places), TARGET, width=1.8) if places else "")
    for (x, y), (n, sure, right) in zip(places, filled, strict=True):
        hint = f"{n:.0f} segments: confidence {sure:.1f}, accuracy {right:.1f}"
        parts.append(svg.dot(x, y, TARGET, radius=2.5 + 9 * (n / total) ** 0.5, hint=hint, opacity=0.6))
    parts.append(svg.text(left + side / 2, top + side + 31, "confidence (%)", kind="name", anchor="middle"))
    parts.append(svg.text(11, top + side / 2, "accuracy (%)", kind="name", anchor="middle", turned=-90))
    return svg.drawing(parts, width=left + side + 16, height=top + side + 38, label="Reliability", max_width=400)
