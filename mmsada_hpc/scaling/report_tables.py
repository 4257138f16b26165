"""The study's figures as text: cells.csv, the table over seeds, and the sentences about where accuracy breaks."""

import csv
import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mmsada_hpc.observe.wording import duration, percent
from mmsada_hpc.scaling.drawing import clips_text, plain
from mmsada_hpc.scaling.pooling import (
    LAST,
    SHARE,
    STANDARD_ERRORS,
    Break,
    Point,
    Recipe,
    breaks_of,
    critical_batch,
    default_accuracy,
    points_of,
    reach,
    recipes_of,
    seed_sd,
)
from mmsada_hpc.scaling.results import CellResult, Missing, Results, Spread
from mmsada_hpc.scaling.speed import KINDS, speed_series


@dataclass(frozen=True)
class Question:
    """What a report asks the study."""

    set_name: str
    accuracy: float | None
    """Percent: time to it is told; None where nothing was evaluated on the way."""
    is_chosen: bool
    """Whether a person chose it."""

    @property
    def why(self) -> str:
        """Where the accuracy comes from."""
        if self.is_chosen:
            return "as asked (--accuracy)"
        return (
            f"{100 * SHARE:.0f} % of the best mean over seeds of a cell's last {LAST} evaluations; --accuracy asks for "
            "another"
        )


def question(results: Results, set_name: str, accuracy: float | None) -> Question:
    """With the default accuracy where none is given."""
    if accuracy is not None:
        return Question(set_name, accuracy, True)
    return Question(set_name, default_accuracy(results, set_name), False)


def as_csv(results: Results, asked: Question) -> str:
    """One line a cell of the study, in its order, also those that have no result; numbers unrounded."""
    efficiency = _efficiencies(results)
    rows = {one.cell.name: _figures(one, asked, efficiency) for one in results.finished}
    missing = {one.cell.name: one for one in results.missing}
    columns = [*_identity(results.finished[0].cell, "finished"), *next(iter(rows.values()))]
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for cell in results.study.cells:
        state = "finished" if cell.name in rows else missing[cell.name].why
        figures = {key: "" if value is None else value for key, value in rows.get(cell.name, {}).items()}
        writer.writerow({**_identity(cell, state), **figures})
    return out.getvalue()


def _identity(cell: Any, state: str) -> dict[str, Any]:
    names = ("name", "part", "nodes", "tasks_per_node", "ranks", "micro_batch", "accumulation", "global_batch")
    return {**{name: getattr(cell, name) for name in (*names, "optimizer", "rule", "seed")}, "state": state}


def _figures(one: CellResult, asked: Question, efficiency: dict[tuple[str, str], float]) -> dict[str, Any]:
    rates = dict(enumerate(one.rates))
    found: dict[str, Any] = {
        "learning_rate_stage1": rates.get(0),
        "learning_rate_stage2": rates.get(1),
        "updates": one.updates,
        "clips_seen": one.clips,
        "target_test_top1_percent": one.accuracy.get("target/test"),
        "source_test_top1_percent": one.accuracy.get("source/test"),
        "chance_percent": one.chance,
        **_spread("step", "s", one.step_s),
        **_spread("throughput", "clips_per_s", one.clips_per_s),
        **{f"{kind}_efficiency": efficiency.get((kind, one.cell.name)) for kind in KINDS},
        **_parts(one),
        "train_s": one.train_s,
        "wall_s": one.wall_s,
        "node_hours": one.node_hours,
        "goodput": None if one.goodput is None else one.goodput.goodput,
        **_spread("late_noise_scale", "clips", one.late_noise),
        "late_noise_ratio_clips": one.noise_ratio,
    }
    return found | _reached(one, asked)


def _spread(name: str, unit: str, value: Spread | None) -> dict[str, float | None]:
    return {
        f"{name}_median_{unit}": None if value is None else value.median,
        f"{name}_p10_{unit}": None if value is None else value.low,
        f"{name}_p90_{unit}": None if value is None else value.high,
    }


def _parts(one: CellResult) -> dict[str, float | None]:
    names = {"data_wait_s": "decode_wait", "compute_s": "own_compute", "slowest_s": "slowest_rank", "rest_s": "rest"}
    parts = one.parts
    return {f"{name}_per_update_s": None if parts is None else getattr(parts, key) for key, name in names.items()}


def _reached(one: CellResult, asked: Question) -> dict[str, Any]:
    """An accuracy that is never reached leaves its figures blank."""
    told = None if asked.accuracy is None else reach(one, asked.set_name, asked.accuracy)
    at, before = (None, None) if told is None else (told.at, told.before)
    return {
        "accuracy_waited_for_percent": asked.accuracy,
        "accuracy_reached": None if told is None else int(at is not None),
        "to_accuracy_train_s": None if at is None else at.train_s,
        "to_accuracy_clips": None if at is None else at.clips,
        "evaluation_before_train_s": None if at is None else (before.train_s if before else 0.0),
        "evaluation_before_clips": None if at is None else (before.clips if before else 0),
    }


def _efficiencies(results: Results) -> dict[tuple[str, str], float]:
    return {
        (kind, one.cell.name): point.efficiency.median
        for kind in KINDS
        for series in speed_series(results, kind)
        for point in series.points
        for one in point.cells
    }


def summary(results: Results, asked: Question) -> list[list[str]]:
    """What was learned: a header, and a line for every recipe and batch with means over seeds."""
    others = {(p.recipe, p.batch): p for p in points_of(results, _other(asked.set_name))}
    rows = [["recipe", "batch", "rates", "seeds", "updates", f"{asked.set_name} %", f"{_other(asked.set_name)} %"]]
    rows[0] += [*([f"clips to {asked.accuracy:.1f} %"] if asked.accuracy is not None else []), "noise scale"]
    for point in points_of(results, asked.set_name):
        other = others.get((point.recipe, point.batch))
        noises = [one.late_noise.median for one in point.cells if one.late_noise]
        row = [str(point.recipe), plain(point.batch), _rates(point.cells[0]), str(point.n)]
        row += [plain(point.cells[0].updates), _with_error(point), "-" if other is None else _with_error(other)]
        row += [_mean_reach(point.cells, asked, "clips")] if asked.accuracy is not None else []
        rows.append([*row, clips_text(statistics.median(noises)) if noises else "-"])
    return rows


def costs(results: Results, asked: Question) -> list[list[str]]:
    """What it took: a header, and a line for every recipe, batch and number of ranks with means over its cells."""
    rows = [["recipe", "batch", "ranks", "cells", "clips/s", "training", "in all", "node-hours"]]
    rows[0] += [f"time to {asked.accuracy:.1f} %"] if asked.accuracy is not None else []
    groups: dict[tuple[str, int, int], list[CellResult]] = {}
    for one in results.finished:
        recipe = str(Recipe(one.cell.optimizer, one.cell.rule))
        groups.setdefault((recipe, one.cell.global_batch, one.cell.ranks), []).append(one)
    order = [str(recipe) for recipe in recipes_of(results)]
    for (recipe, batch, ranks), cells in sorted(groups.items(), key=lambda item: (order.index(item[0][0]), *item[0])):
        speeds = [one.clips_per_s.median for one in cells if one.clips_per_s is not None]
        row = [recipe, plain(batch), str(ranks), str(len(cells)), f"{statistics.median(speeds):.1f}" if speeds else "-"]
        row.append(duration(statistics.fmean(one.train_s for one in cells)))
        row.append(_mean([one.wall_s for one in cells], duration))
        row.append(_mean([one.node_hours for one in cells], lambda hours: f"{hours:.2g}"))
        rows.append([*row, *([_mean_reach(cells, asked, "train_s")] if asked.accuracy is not None else [])])
    return rows


def every_cell(results: Results, asked: Question) -> list[list[str]]:
    """A header, and a line for every finished cell."""
    rows = [["cell", "batch", f"{asked.set_name} %", "clips/s", "step s", "10 - 90 %", "noise scale", "goodput %"]]
    for one in results.finished:
        speed, step, noise = one.clips_per_s, one.step_s, one.late_noise
        row = [one.cell.name, plain(one.cell.global_batch), percent(one.accuracy.get(asked.set_name))]
        row += ["-" if speed is None else f"{speed.median:.1f}", "-" if step is None else f"{step.median:.3g}"]
        row += ["-" if step is None else f"{step.low:.3g} - {step.high:.3g}"]
        row += [
            "-"
            if noise is None
            else " ".join([clips_text(noise.median), f"({clips_text(noise.low)} - {clips_text(noise.high)})"])
        ]
        rows.append([*row, "-" if one.goodput is None else percent(100 * one.goodput.goodput)])
    return rows


def _rates(one: CellResult) -> str:
    """`0.04, 0.008`: the highest of each stage, once where they agree."""
    return ", ".join(dict.fromkeys(f"{rate:.3g}" for rate in one.rates)) or "-"


def _mean(values: Sequence[float | None], text: Callable[[float], str]) -> str:
    known = [value for value in values if value is not None]
    return text(statistics.fmean(known)) if known else "-"


def _mean_reach(cells: Sequence[CellResult], asked: Question, what: Literal["clips", "train_s"]) -> str:
    """Over the cells that reached the accuracy; says how many where not all did."""
    assert asked.accuracy is not None
    told = [reach(one, asked.set_name, asked.accuracy) for one in cells]
    there = [getattr(one, what) for one in told if one.at is not None]
    if not there:
        return "never"
    text = _mean(there, duration if what == "train_s" else lambda clips: f"{clips:,.0f}")
    return text + ("" if len(there) == len(told) else f" ({len(there)} of {len(told)})")


def _other(name: str) -> str:
    side, _, split = name.partition("/")
    return f"{'source' if side == 'target' else 'target'}/{split}"


def _with_error(point: Point) -> str:
    return f"{point.mean:.1f} ± {point.error:.1f}" if point.error is not None else percent(point.mean)


def break_definition(results: Results, name: str) -> str:
    """What "breaks" means here, with what it rests on."""
    points = points_of(results, name)
    sd = seed_sd(points)
    first = breaks_of(results, points)[0].reference
    errors = f"{STANDARD_ERRORS:g} standard errors of the difference of the two means"
    start = (
        f"Accuracy on {name} breaks at the first batch above {first.batch} whose mean is below the reference by more "
        f"than {errors}. The reference is {first.recipe} at batch {first.batch}: {percent(first.mean)} % "
        f"({first.n} seed{'' if first.n == 1 else 's'})."
    )
    if sd is None:
        return (
            f"{start} No batch has two seeds, so the spread over seeds is unknown; the errors are those of scoring "
            f"{first.segments} segments, which is less than seeds differ. Do not read small differences."
        )
    return f"{start} The spread over seeds, pooled over every batch that has several, is {sd:.1f} percentage points."


def break_lines(results: Results, name: str) -> list[str]:
    """One sentence a recipe."""
    return [_break_line(one) for one in breaks_of(results, points_of(results, name))]


def _break_line(one: Break) -> str:
    if one.breaks_at is None:
        return f"{one.recipe}: not reached in this study; {one.largest} is its largest batch."
    by_batch = {batch: (difference, allowed) for batch, difference, allowed in one.steps}
    difference, allowed = by_batch[one.breaks_at]
    held = f"holds to {one.holds_to}, " if one.holds_to is not None else ""
    again = ", ".join(map(str, one.recovers_at))
    return (
        f"{one.recipe}: {held}breaks at {one.breaks_at} ({difference:+.1f} points, {allowed:.1f} allowed)"
        f"{f'; within the allowance again at {again}' if again else ''}."
    )


def noise_line(results: Results) -> str:
    """The critical batch in one sentence."""
    found = critical_batch(results)
    if found is None:
        return (
            "No noise scale was logged, so there is no critical batch: an update needs several independent parts, that "
            "is ranks or micro-batches (in a domain-pure layout micro-batches)."
        )
    number = sum(one.late_noise is not None for one in results.finished)
    over = f"over {number} cells" if number > 1 else "of one cell"
    return (
        f"Critical batch {clips_text(found.median)} clips: the median {over} of the noise scale in the last half of "
        f"training; 10 to 90 % of the cells lie in {clips_text(found.low)} to {clips_text(found.high)}."
    )


def missing_lines(missing: Sequence[Missing]) -> list[list[str]]:
    """Cell and reason."""
    return [[one.cell.name, one.why] for one in missing]
