"""The pictures about time: throughput and efficiency against ranks, and what an update's time goes to."""

import statistics
from collections.abc import Sequence
from typing import Any

from mmsada_hpc.scaling.drawing import (
    COLOURS,
    INK,
    MUTED,
    PAGE,
    PLAIN,
    Picture,
    legend,
    log_axis,
    look,
    panels,
)
from mmsada_hpc.scaling.results import WARM_UP, Results, StepParts
from mmsada_hpc.scaling.speed import Kind, SpeedSeries, speed_series, step_parts

_FIXED = {"weak": "clips a rank fixed, so that the batch grows with the ranks", "strong": "the global batch fixed"}
_IDEAL = (0, (1, 2))  # dots
_PARTS = (
    ("data_wait_s", "decode wait", COLOURS[4], ""),
    ("compute_s", "own compute", COLOURS[0], ""),
    ("slowest_s", "waiting for the slowest rank", COLOURS[1], "////"),
    ("rest_s", "averaging, optimiser, rest", PLAIN, ".."),
)


def scaling_picture(results: Results, kind: Kind) -> Picture | None:
    """Throughput and efficiency side by side; None without two numbers of ranks to compare."""
    found = speed_series(results, kind)
    if not found:
        return None
    figure, (speed, efficiency) = panels(2, width=PAGE, height=2.3)
    for index, series in enumerate(found):
        _draw_speed(speed, series, index)
        _draw_efficiency(efficiency, series, index)
    ranks = sorted({float(point.ranks) for series in found for point in series.points})
    for axis in (speed, efficiency):
        log_axis(axis, "x", ranks, ticks=ranks)
        axis.set_xlabel("ranks")
    bounds = [(s.points[0].clips_per_s.median, s.points[0].ranks) for s in found]
    ideal = [base / first * point.ranks for s, (base, first) in zip(found, bounds, strict=True) for point in s.points]
    spreads = [point.clips_per_s for series in found for point in series.points]
    log_axis(speed, "y", [*ideal, *(s.low for s in spreads), *(s.high for s in spreads)])
    speed.set_ylabel("clips/s")
    efficiency.axhline(100, color=MUTED, linewidth=1, linestyle=_IDEAL)
    efficiency.set_ylim(bottom=0)
    efficiency.set_ylabel("efficiency (%)")
    speed.plot([], [], color=MUTED, linewidth=1, linestyle=_IDEAL, label="ideal")
    legend(figure, speed, columns=3)
    return Picture(
        f"scaling_{kind}",
        f"{kind.capitalize()} scaling",
        f"{kind.capitalize()}: {_FIXED[kind]}. Medians over all updates of all seeds after the first {WARM_UP} of each "
        "stage, bands from 10 to 90 % of them; dotted is ideal. Efficiency: clips/s a rank, over that of the fewest "
        "ranks of the line.",
        figure,
    )


def _draw_speed(axis: Any, series: SpeedSeries, index: int) -> None:
    ranks, style = [point.ranks for point in series.points], look(index)
    spreads = [point.clips_per_s for point in series.points]
    axis.plot(ranks, [spread.median for spread in spreads], label=series.label, **style)
    axis.fill_between(
        ranks, [s.low for s in spreads], [s.high for s in spreads], color=style["color"], alpha=0.16, linewidth=0
    )
    base = spreads[0].median / ranks[0]
    axis.plot(ranks, [base * n for n in ranks], color=MUTED, linewidth=1, linestyle=_IDEAL, zorder=1)


def _draw_efficiency(axis: Any, series: SpeedSeries, index: int) -> None:
    ranks, style = [point.ranks for point in series.points], look(index)
    spreads = [point.efficiency for point in series.points]
    axis.plot(ranks, [100 * spread.median for spread in spreads], **style)
    low, high = [100 * s.low for s in spreads], [100 * s.high for s in spreads]
    axis.fill_between(ranks, low, high, color=style["color"], alpha=0.16, linewidth=0)


def step_picture(results: Results) -> Picture | None:
    """Shares of an update's time, a bar a shape; None where no cell has a ledger."""
    found = step_parts(results)
    if not found:
        return None
    figure, (axis,) = panels(1, width=PAGE, height=0.6 + 0.24 * len(found))
    places = range(len(found))
    left = [0.0] * len(found)
    for name, label, colour, hatch in _PARTS:
        shares = [100 * _mean(parts, name) / _mean(parts, "step_s") for parts in found.values()]
        bars = axis.barh(places, shares, left=left, height=0.68, color=colour, label=label, hatch=hatch, linewidth=0)
        for bar in bars:
            bar.set_edgecolor(INK)
        left = [a + b for a, b in zip(left, shares, strict=True)]
    for place, parts in zip(places, found.values(), strict=True):
        axis.text(101, place, f"{_mean(parts, 'step_s'):.3g} s", va="center", fontsize=6.5, color=INK)
    axis.set_yticks(places, list(found))
    axis.set_xlim(0, 100)
    axis.set_ylim(len(found) - 0.4, -0.6)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("share of an update (%), its seconds on the right")
    legend(figure, axis, columns=4)
    return Picture(
        "step_time",
        "What an update's time goes to",
        "Rank 0: means over the latest updates of a run (at most 50), its seeds and rules. Gradients that are averaged "
        "while others are still computed are in own compute; the wait for the slowest rank is by the ranks' mean "
        "times, so at least that.",
        figure,
    )


def _mean(parts: Sequence[StepParts], name: str) -> float:
    return statistics.fmean(getattr(one, name) for one in parts)
