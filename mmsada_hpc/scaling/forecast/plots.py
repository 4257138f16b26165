"""Pictures of forecasts."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmsada_hpc.data.shards import writing
from mmsada_hpc.scaling.drawing import (
    INK,
    PAGE,
    PLAIN,
    Picture,
    legend,
    log_axis,
    look,
    need_matplotlib,
    panels,
    style,
    write,
)
from mmsada_hpc.scaling.forecast.forecast import Row, Span
from mmsada_hpc.scaling.validation_model import Predicted


def plot_validation(cells: Sequence[Predicted], path: Path) -> None:
    """Predicted against measured with intervals, and the error by engine; hollow = fitted."""
    need_matplotlib()
    with style():
        figure, (left, right) = panels(2, width=PAGE, height=2.9)
        links = list(dict.fromkeys(one.job.cell.link for one in cells))
        for k, link in enumerate(links):
            _draw_steps(left, [one for one in cells if one.job.cell.link == link], link, k)
        values = [1000 * value for one in cells for value in (one.measured_s, one.step_s)]
        for which in ("x", "y"):
            log_axis(left, which, values)
        ends = [min(values), max(values)]
        left.plot(ends, ends, color=PLAIN, linewidth=1, zorder=1)
        left.set_xlabel("measured, ms a step")
        left.set_ylabel("predicted, ms a step")
        _draw_errors(right, cells, links)
        legend(figure, left, columns=len(links))
        _write(figure, path)


def _draw_steps(axis: Any, cells: Sequence[Predicted], link: str, k: int) -> None:
    dress = {**look(k), "linestyle": "none"}
    for fitted in (False, True):
        chosen = [one for one in cells if one.is_fitted == fitted]
        middle = [1000 * one.step_s for one in chosen]
        below = [1000 * (one.step_s - one.low_s) for one in chosen]
        above = [1000 * (one.high_s - one.step_s) for one in chosen]
        filled = {"markerfacecolor": "none"} if fitted else {}
        axis.errorbar(
            [1000 * one.measured_s for one in chosen],
            middle,
            yerr=[below, above],
            elinewidth=0.6,
            alpha=0.8,
            label=None if fitted else link,
            **dress,
            **filled,
        )


def _draw_errors(axis: Any, cells: Sequence[Predicted], links: Sequence[str]) -> None:
    engines = list(dict.fromkeys(one.engine for one in cells))
    for one in cells:
        k = links.index(one.job.cell.link)
        place = engines.index(one.engine) + 0.16 * (k - (len(links) - 1) / 2)
        filled = {"markerfacecolor": "none"} if one.is_fitted else {}
        dress = {**look(k), "linestyle": "none", "markersize": 3}
        axis.plot([100 * one.error], [place], **dress, **filled)
    axis.axvline(0, color=INK, linewidth=0.7)
    axis.set_yticks(range(len(engines)), engines)
    axis.invert_yaxis()
    axis.set_xlabel("error of the prediction, %")


def _write(figure: Any, path: Path) -> None:
    writing(path, lambda: path.parent.mkdir(parents=True, exist_ok=True))
    write([Picture(path.stem, "", "", figure)], path.parent)


def plot_forecast(rows: Sequence[Row], path: Path) -> None:
    """Efficiency and what failures leave of it, and the hours of a run, against nodes, with intervals."""
    need_matplotlib()
    with style():
        figure, (left, right) = panels(2, width=PAGE, height=2.6)
        nodes = [row.nodes for row in rows]
        for k, (name, spans) in enumerate(
            {"efficiency": [row.efficiency for row in rows], "kept of the time": [row.goodput for row in rows]}.items()
        ):
            _draw_spans(left, nodes, [_times(span, 100) for span in spans], name, k)
        left.set_ylim(0, 105)
        left.set_ylabel("%")
        ending = [row for row in rows if math.isfinite(row.hours.high)]
        hours = [row.hours for row in ending]
        _draw_spans(right, [row.nodes for row in ending], hours, "a run", 2)
        log_axis(right, "y", [value for span in hours for value in (span.low, span.high)])
        right.set_ylabel("hours a run")
        for axis in (left, right):
            log_axis(axis, "x", nodes)
            axis.set_xlabel("nodes")
        legend(figure, left)
        _write(figure, path)


def _draw_spans(axis: Any, nodes: Sequence[int], spans: Sequence[Span], name: str, k: int) -> None:
    axis.plot(nodes, [span.best for span in spans], label=name, **look(k))
    low, high = [span.low for span in spans], [span.high for span in spans]
    axis.fill_between(nodes, low, high, color=look(k)["color"], alpha=0.15, linewidth=0)


def _times(span: Span, factor: float) -> Span:
    return Span(factor * span.best, factor * span.low, factor * span.high)
