"""The pictures about learning: accuracy, time to accuracy, noise scale, cost."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from mmsada_hpc.scaling.drawing import (
    COLOURS,
    INK,
    MUTED,
    PAPER,
    Picture,
    clips_text,
    legend,
    log_axis,
    look,
    panels,
    plain,
)
from mmsada_hpc.scaling.pooling import Point, Reach, Recipe, cells_of, critical_batch, points_of, reach, recipes_of
from mmsada_hpc.scaling.results import CellResult, Results

_SMALL, _LARGE = 2.5, 8.0  # points: marks of the smallest and the largest batch
_APART = 0.05  # of an octave: recipes at one batch do not hide each other
_DEEPEST = 4.0  # an evaluation before that is further below, perhaps at 0, does not stretch the axis
_MOST_POINTS = 300  # of a curve: more than a column's pixels only make the files heavy
_NEAR = 4.0  # a critical batch within this factor of the study's batches is on the axis
BATCH = "global batch (clips)"
Measure = Callable[[Reach], float]


def accuracy_picture(results: Results, name: str) -> Picture | None:
    """A set's accuracy against the global batch; None where no cell has it."""
    points = points_of(results, name)
    if not points:
        return None
    figure, (axis,) = panels(1)
    for index, (recipe, own) in enumerate(_by_recipe(points).items()):
        shift = _shift(index, len(_by_recipe(points)))
        xs, style = [point.batch * shift for point in own], look(index)
        axis.plot(xs, [point.mean for point in own], label=str(recipe), **style)
        for x, point in zip(xs, own, strict=True):
            if point.n > 1:
                seeds = list(point.by_seed.values())
                axis.plot([x] * point.n, seeds, ".", color=style["color"], markersize=3, alpha=0.55, zorder=1)
                axis.errorbar(x, point.mean, point.error, color=style["color"], elinewidth=0.9, capsize=2, fmt="none")
    if (chance := _chance(results)) is not None:
        axis.axhline(chance, color=MUTED, linewidth=1, linestyle=(0, (1, 2)), label=f"chance {chance:.3g} %")
    batches = sorted({float(point.batch) for point in points})
    _batch_axis(axis, batches, also=_draw_critical(axis, results, batches))
    axis.set_ylabel(f"top-1 on {name} (%)")
    legend(figure, axis)
    return Picture(
        f"accuracy_{name.replace('/', '_')}",
        f"Accuracy on {name} against batch",
        "Means over seeds; bars are one standard error of the mean and small dots single seeds, where there are "
        "several. At the base batch every rule gives the same rate, so the recipes of an optimiser share it.",
        figure,
    )


def _draw_critical(axis: Any, results: Results, batches: Sequence[float]) -> list[float]:
    """The critical batch and its range; returns where the axis must reach."""
    found = critical_batch(results)
    if found is None:
        return []
    words = f"critical batch {clips_text(found.median)} ({clips_text(found.low)}-{clips_text(found.high)})"
    low, high = batches[0] / _NEAR, batches[-1] * _NEAR
    if not low <= found.median <= high:
        side = "below" if found.median < low else "beyond"
        axis.plot([], [], " ", label=f"{words}: {side} the axis")
        return []
    edges = [max(found.low, low), min(found.high, high)]
    axis.axvspan(*edges, color=MUTED, alpha=0.14, linewidth=0, zorder=0)
    axis.axvline(found.median, color=INK, linewidth=1, linestyle=(0, (5, 2)), zorder=0, label=words)
    return [found.median, *edges]


def reach_pictures(results: Results, name: str, accuracy: float) -> list[Picture]:
    """Seconds and clips until an accuracy, against the global batch; none where nothing was evaluated on the way."""
    cells = [one for one in results.finished if one.evaluations.get(name)]
    if not cells:
        return []
    ranks = statistics.mode(one.cell.ranks for one in cells)
    where = "" if len({one.cell.ranks for one in cells}) == 1 else f" Cells on {ranks} ranks; cells.csv has all."
    rule = (
        "Until the first evaluation at or above it (and the next, if there is one): means over seeds, small dots "
        "single seeds; a thin line reaches back to the evaluation before, after which it happened. Hollow: never, "
        "at what was spent in vain. Lines join the batches where every seed did."
    )
    kinds: list[tuple[str, str, Measure, Measure, str]] = [
        ("time", "seconds", lambda one: one.train_s, lambda one: one.before.train_s if one.before else 0.0, where),
        ("clips", "clips", lambda one: one.clips, lambda one: one.before.clips if one.before else 0.0, ""),
    ]
    found = list[Picture]()
    for kind, unit, value, before, also in kinds:
        figure, (axis,) = panels(1)
        _draw_reach(axis, results, name, accuracy, value, before, ranks=ranks if kind == "time" else None)
        axis.set_ylabel(f"{unit} to {accuracy:.1f} % top-1")
        legend(figure, axis)
        title = f"{'Seconds of updates' if kind == 'time' else 'Clips'} to {accuracy:.1f} % on {name}"
        found.append(Picture(f"{kind}_to_accuracy", title, rule + also, figure))
    return found


def _draw_reach(
    axis: Any, results: Results, name: str, accuracy: float, value: Measure, before: Measure, *, ranks: int | None
) -> None:
    """Of the cells on `ranks`; None = of all."""
    shown, batches, has_hollow, recipes = list[float](), set[float](), False, recipes_of(results)
    for index, recipe in enumerate(recipes):
        cells = [one for one in cells_of(results, recipe) if ranks in (None, one.cell.ranks)]
        style, means = look(index), list[tuple[float, float]]()
        loose = {"color": style["color"], "marker": style["marker"], "linestyle": ""}
        for batch in sorted({one.cell.global_batch for one in cells}):
            x, own = batch * _shift(index, len(recipes)), [one for one in cells if one.cell.global_batch == batch]
            told = [reach(one, name, accuracy) for one in own]
            batches.add(batch)
            shown += [value(one) for one in told]
            for one in told:
                if one.at is None:
                    axis.plot(x, value(one), **loose, markerfacecolor=PAPER)
                    has_hollow = True
                else:
                    shown.append(max(before(one), value(one) / _DEEPEST))
                    axis.plot([x, x], [max(before(one), 1e-9), value(one)], color=style["color"], lw=0.6)
                    axis.plot(x, value(one), ".", color=style["color"], markersize=3)
            if all(one.at is not None for one in told):
                means.append((x, statistics.fmean(value(one) for one in told)))
        axis.plot([x for x, _ in means], [y for _, y in means], label=str(recipe), **style)
    if has_hollow:
        axis.plot([], [], "o", color=MUTED, markerfacecolor=PAPER, label="never reached")
    _batch_axis(axis, sorted(batches))
    log_axis(axis, "y", shown)


def noise_picture(results: Results) -> Picture | None:
    """The noise scale against clips seen, coloured by batch; None where none was logged."""
    cells = [one for one in results.finished if one.noise]
    if not cells:
        return None
    figure, (axis,) = panels(1)
    batches = sorted({one.cell.global_batch for one in cells})
    for index, batch in enumerate(batches):
        label: str | None = f"batch {plain(batch)}"
        for one in cells:
            if one.cell.global_batch == batch:
                xs, ys = zip(*one.noise[:: -(-len(one.noise) // _MOST_POINTS)], strict=True)
                colour, dash = COLOURS[index % len(COLOURS)], look(index)["linestyle"]
                axis.plot(
                    xs,
                    [y if y < math.inf else math.nan for y in ys],
                    color=colour,
                    linestyle=dash,
                    linewidth=0.9,
                    alpha=0.75,
                    label=label,
                )
                label = None
    if (critical := critical_batch(results)) is not None:
        end = max(one.clips for one in cells)
        words = f"critical batch {clips_text(critical.median)}"
        level = critical.median if critical.median < math.inf else math.nan
        axis.plot([end / 2, end], [level] * 2, color=INK, linewidth=1.4, dashes=(5, 2), label=words)
    _noise_limits(axis, cells)
    axis.set_xlabel("clips seen in training")
    axis.set_ylabel("gradient noise scale (clips)")
    legend(figure, axis, columns=3)
    return Picture(
        "noise_scale",
        "Gradient noise scale",
        "tr(Σ)/|G|², smoothed as it was logged; a line a cell; gaps where |G|² cannot be told from zero. The critical "
        "batch is the median over cells of each cell's median over the last half of its clips.",
        figure,
    )


def _noise_limits(axis: Any, cells: Sequence[CellResult]) -> None:
    values = sorted(noise for one in cells for _, noise in one.noise if noise < math.inf)
    inside = values[len(values) // 100 : len(values) - len(values) // 100]  # a few first estimates may be far off
    log_axis(axis, "y", inside)
    axis.set_xlim(0, 1.02 * max(one.clips for one in cells))
    axis.xaxis.set_major_formatter(lambda value, _: plain(value))
    axis.locator_params(axis="x", nbins=5)


def cost_pictures(results: Results, name: str) -> list[Picture]:
    """Accuracy against what it cost: node-hours, and clips where they differ."""
    cells = [one for one in results.finished if name in one.accuracy]
    found = list[Picture]()
    if cells and all(one.node_hours for one in cells):
        found.append(_cost(results, name, "cost_node_hours", "node-hours", lambda one: one.node_hours or 0.0))
    clips = [one.clips for one in cells if one.clips]
    if clips and max(clips) > 1.02 * min(clips):
        found.append(_cost(results, name, "cost_clips", "clips", lambda one: float(one.clips)))
    return found


def _cost(results: Results, name: str, key: str, what: str, value: Callable[[CellResult], float]) -> Picture:
    figure, (axis,) = panels(1)
    batches = sorted({one.cell.global_batch for one in results.finished})
    shown = list[float]()
    for index, recipe in enumerate(recipes_of(results)):
        own = [one for one in results.finished if Recipe(one.cell.optimizer, one.cell.rule) == recipe]
        cells = [one for one in own if name in one.accuracy and value(one)]
        style = {**look(index), "linestyle": "", "alpha": 0.75, "markeredgewidth": 0}
        for one in cells:
            size = _SMALL + (_LARGE - _SMALL) * batches.index(one.cell.global_batch) / max(1, len(batches) - 1)
            axis.plot(value(one), one.accuracy[name], **style, markersize=size)
        shown += [value(one) for one in cells]
        axis.plot([], [], **style, markersize=5, label=str(recipe))
    if (chance := _chance(results)) is not None:
        axis.axhline(chance, color=MUTED, linewidth=1, linestyle=(0, (1, 2)), label=f"chance {chance:.3g} %")
    log_axis(axis, "x", shown)
    axis.set_xlabel(f"{what} a run; a larger mark is a larger batch")
    axis.set_ylabel(f"top-1 on {name} (%)")
    legend(figure, axis)
    caption = f"A mark a cell; the sizes are batches {', '.join(map(plain, batches))}."
    if what == "node-hours":
        caption += (
            " Node-hours are nodes times the wall time of every start, evaluations and checkpoints included, the wait "
            "for a job not."
        )
    return Picture(key, f"Cost in {what}", caption, figure)


def _batch_axis(axis: Any, batches: Sequence[float], *, also: Sequence[float] = ()) -> None:
    log_axis(axis, "x", [*batches, *also], ticks=batches)
    axis.set_xlabel(BATCH)


def _by_recipe(points: Sequence[Point]) -> dict[Recipe, list[Point]]:
    found: dict[Recipe, list[Point]] = {}
    for point in points:
        found.setdefault(point.recipe, []).append(point)
    return found


def _shift(index: int, count: int) -> float:
    return float(2 ** (_APART * (index - (count - 1) / 2)))


def _chance(results: Results) -> float | None:
    return next((one.chance for one in results.finished if one.chance is not None), None)
