"""Charts of a run over its steps, from the rows of metrics.jsonl."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mmsada_hpc.observe.linechart import Level, Line, line_chart
from mmsada_hpc.observe.page import SOURCE, TARGET, colour, figure, key, line_sample, note
from mmsada_hpc.observe.runs import Row, Run
from mmsada_hpc.observe.wording import in_report_order, is_number, streams

Smoother = Callable[[NDArray[np.float64], int], NDArray[np.float64]]
LN_2 = math.log(2)
DOTTED = "1.5 3"
DASHED = "6 3"


@dataclass(frozen=True)
class Term:
    """One measured quantity of the train rows and how it is drawn."""

    key: str
    name: str
    colour: str
    dash: str = ""


def stage_changes(rows: Sequence[Row]) -> list[tuple[float, str]]:
    """(global step, "stage 2") wherever the stage of the train rows changes."""
    changes = []
    for before, after in itertools.pairwise(rows):
        if before.get("stage") != after.get("stage"):
            changes.append((float(after.get("global_step", 0)), f"stage {after.get('stage')}"))
    return changes


def _values(rows: Sequence[Row], name: str) -> NDArray[np.float64]:
    return np.array([row[name] if is_number(row.get(name)) else np.nan for row in rows], dtype=np.float64)


def running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Mean over the finite values of a centred window; NaN where the value itself is missing."""
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    index = np.arange(len(values))
    low, high = np.maximum(index - window // 2, 0), np.minimum(index + window // 2 + 1, len(values))
    number = counts[high] - counts[low]
    return np.where(finite, (sums[high] - sums[low]) / np.maximum(number, 1), np.nan)


def running_median(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Like `running_mean`, unmoved by the first steps of a (re)start, which are slow by far."""
    half = window // 2
    pieces = (values[max(0, index - half) : index + half + 1] for index in range(len(values)))
    middle = [float(np.median(piece[np.isfinite(piece)])) if np.isfinite(piece).any() else np.nan for piece in pieces]
    return np.where(np.isfinite(values), np.array(middle, dtype=np.float64), np.nan)


def _smoothed_by_stage(rows: Sequence[Row], values: NDArray[np.float64], smoother: Smoother) -> NDArray[np.float64]:
    # never across the change: the losses of two stages are not the same quantity
    stages = np.array([row.get("stage", 0) for row in rows])
    smooth = np.full_like(values, np.nan)
    for stage in dict.fromkeys(stages.tolist()):
        inside = stages == stage
        smooth[inside] = smoother(values[inside], max(5, int(inside.sum()) // 25))
    return smooth


def _with_stage_gaps(
    rows: Sequence[Row], steps: NDArray[np.float64], values: NDArray[np.float64]
) -> tuple[list[float], list[float]]:
    """Puts a gap at every stage change, so that no line joins two stages."""
    xs, ys = [], []
    for index, (step, value) in enumerate(zip(steps.tolist(), values.tolist(), strict=True)):
        if index and rows[index].get("stage") != rows[index - 1].get("stage"):
            xs.append(step)
            ys.append(math.nan)
        xs.append(step)
        ys.append(value)
    return xs, ys


def _lines(rows: Sequence[Row], terms: Sequence[Term], smoother: Smoother) -> list[Line]:
    steps, lines = _values(rows, "global_step"), []
    for term in terms:
        values = _values(rows, term.key)
        if not np.isfinite(values).any():
            continue
        smooth = _smoothed_by_stage(rows, values, smoother)
        lines.append(Line(term.name, *_with_stage_gaps(rows, steps, values), term.colour, faint=True))
        lines.append(Line(term.name, *_with_stage_gaps(rows, steps, smooth), term.colour, dash=term.dash))
    return lines


def _legend(lines: Sequence[Line], levels: Sequence[Level]) -> str:
    curves = [(line_sample(line.colour, dash=line.dash), line.name) for line in lines]
    return key([*curves, *((line_sample(level.colour, dash=level.dash), level.label) for level in levels)])


def _train_chart(
    run: Run,
    title: str,
    terms: Sequence[Term],
    *,
    y_label: str,
    caption: str = "",
    levels: Sequence[Level] = (),
    y_range: tuple[float, float] | None = None,
    smoother: Smoother = running_mean,
) -> str:
    """A chart of the terms that the run has; "" when it has none of them."""
    lines = _lines(run.train, terms, smoother)
    if not lines:
        return ""
    drawing = line_chart(
        lines,
        title=title,
        y_label=y_label,
        levels=levels,
        changes=stage_changes(run.train),
        y_range=y_range,
        x_range=(0, _last_step(run)),
    )
    legend = _legend([line for line in lines if not line.faint], levels)
    return figure(title, drawing, legend=legend, caption=caption)


def _keys(run: Run) -> set[str]:
    return {name for row in run.train for name in row}


def _domain_terms(keys: set[str], prefix: str) -> list[Term]:
    """One curve a stream; the colours of the other curves (0, 2) are left out."""
    palette = [index for index in range(8) if index not in (0, 2, 6)]
    names = streams(keys, prefix)
    return [Term(prefix + s, f"domain, {s}", colour(palette[i % len(palette)])) for i, s in enumerate(names)]


def loss_charts(run: Run) -> list[str]:
    """The total and the classification loss, and the two-way losses (correspondence, domain) against guessing."""
    keys = _keys(run)
    classification = [Term("loss", "total", colour(6)), Term("loss_ce", "classification", colour(0))]
    two_way = [Term("loss_corr", "correspondence", colour(2)), *_domain_terms(keys, "loss_domain_")]
    known = {term.key for term in (*classification, *two_way)}
    others = sorted({name for name in keys if name.startswith("loss_")} - known)
    rest = [Term(name, name.removeprefix("loss_"), colour(index)) for index, name in enumerate(others)]
    guess = [Level(LN_2, "ln 2, guessing")]
    charts = [
        _train_chart(run, "Loss", classification, y_label="loss (nats)"),
        _train_chart(run, "Two-way losses", two_way, y_label="loss (nats)", levels=guess),
        _train_chart(run, "Further losses", rest, y_label="loss"),
    ]
    return [chart for chart in charts if chart]


def accuracy_chart(run: Run) -> list[str]:
    """Accuracies on the training clips: verbs (source), correspondence, domain."""
    terms = [
        Term("top1", "verb, source clips", colour(0)),
        Term("corr_acc", "correspondence", colour(2)),
        *_domain_terms(_keys(run), "domain_acc_"),
    ]
    chart = _train_chart(
        run,
        "Accuracy on training clips",
        terms,
        y_label="accuracy (%)",
        y_range=(0, 104),
        levels=[Level(50, "50 %, guessing one of two")],
        caption="Domain accuracy near 50 % means that the discriminator cannot tell source from target.",
    )
    return [chart] if chart else []


def speed_charts(run: Run) -> list[str]:
    """Throughput, and the share of each step spent waiting for data."""
    rows = [{**row, "wait_share": _share(row)} for row in run.train]
    timed = replace(run, train=rows)
    speed, waiting = Term("clips_per_s", "clips/s", colour(0)), Term("wait_share", "waiting", colour(4))
    charts = [
        _train_chart(timed, "Throughput", [speed], y_label="clips/s", smoother=running_median),
        _train_chart(timed, "Time waiting for data", [waiting], y_label="share of step (%)", smoother=running_median),
    ]
    return [chart for chart in charts if chart]


def _share(row: Row) -> float | None:
    wait, step = row.get("data_wait_s"), row.get("step_s")
    if wait is None or not is_number(wait) or step is None or not is_number(step) or step <= 0:
        return None
    return 100 * float(wait) / float(step)


def _last_step(run: Run) -> float:
    return max((float(row.get("global_step", 0)) for row in (*run.train, *run.evals)), default=1.0)


def evaluation_chart(run: Run, *, baseline: tuple[float, str] | None) -> str:
    """Fused top-1 of every evaluated set over the steps; `baseline` (percent, label) is drawn dotted."""
    if not run.evals:
        return note("No evaluation yet.")
    names = in_report_order({str(row.get("set")): row for row in run.evals})
    lines = []
    for index, name in enumerate(names):
        rows = [row for row in run.evals if str(row.get("set")) == name]
        side = SOURCE if name.startswith("source") else TARGET if name.startswith("target") else colour(index + 2)
        dash = "" if name.endswith("/test") or len(names) < 3 else DASHED
        steps, values = _values(rows, "global_step").tolist(), _values(rows, "top1").tolist()
        lines.append(Line(name, steps, values, side, dash=dash, points=True))
    levels = [Level(float(run.result["chance"]), "chance", dash="4 3")] if is_number(run.result.get("chance")) else []
    if baseline is not None:
        levels.append(Level(baseline[0], baseline[1], dash=DOTTED, colour=TARGET))
    drawing = line_chart(
        lines,
        title="Evaluation accuracy",
        y_label="top-1 (%)",
        levels=levels,
        changes=stage_changes(run.train),
        y_range=(0, 104),
        x_range=(0, _last_step(run)),
    )
    legend = _legend(lines, levels)
    return figure("Accuracy on evaluated segments (fused)", drawing, legend=legend)
