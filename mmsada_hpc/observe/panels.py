"""Drawings that are not curves: confusion matrix, embedding, runs compared on one axis."""

from __future__ import annotations

from collections.abc import Sequence
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
class Dot:
    """One run on the comparison axis; `error` is a standard error in the unit of `value`."""

    name: str
    value: float
    error: float | None
    colour: str


def dot_plot(dots: Sequence[Dot], *, x_label: str, chance: float | None) -> str:
    """Runs below each other, their value on one common axis, whiskers of one standard error, chance dashed."""
    width, row, top = 400, 22, 16
    left = 14 + 6.0 * min(26, max(len(dot.name) for dot in dots))
    bottom = top + row * len(dots)
    low, high = _dot_range(dots, chance)

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - 16)

    parts = []
    for value in svg.ticks(low, high, count=4):
        parts.append(svg.styled(f"M{x(value):.1f} {top - 4}V{bottom}", "rule"))
        parts.append(svg.text(x(value), bottom + 14, svg.tick_label(value), kind="tick", anchor="middle"))
    if chance is not None:
        parts.append(svg.styled(f"M{x(chance):.1f} {top - 4}V{bottom}", "change"))
        parts.append(svg.text(x(chance), top - 6, "chance", kind="mark", anchor="middle"))
    for index, item in enumerate(dots):
        y = top + row * (index + 0.5)
        parts.append(svg.text(left - 8, y + 3.5, _shortened(item.name, 26), kind="tick", anchor="end"))
        if item.error is not None:
            ends = x(max(low, item.value - item.error)), x(min(high, item.value + item.error))
            parts.append(svg.stroke(f"M{ends[0]:.1f} {y}H{ends[1]:.1f}", item.colour, width=1.5))
        parts.append(svg.dot(x(item.value), y, item.colour, radius=4.2, hint=f"{item.name}: {item.value:.1f}"))
    parts.append(svg.text((left + width - 16) / 2, bottom + 30, x_label, kind="name", anchor="middle"))
    return svg.drawing(parts, width=width, height=bottom + 36, label="Runs compared")


def _dot_range(dots: Sequence[Dot], chance: float | None) -> tuple[float, float]:
    ends = [dot.value + sign * (dot.error or 0.0) for dot in dots for sign in (-1, 1)]
    ends += [chance] if chance is not None else []
    margin = 0.06 * (max(ends) - min(ends)) or 5.0
    return max(0.0, min(ends) - margin), min(100.0, max(ends) + margin)
