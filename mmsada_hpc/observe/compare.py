"""The part of the report that sets several runs side by side."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from mmsada_hpc.observe.page import colour, details, figure, note, table
from mmsada_hpc.observe.panels import Dot, dot_plot
from mmsada_hpc.observe.runs import Row, Run
from mmsada_hpc.observe.wording import duration, is_number, joined, method_name, percent, standard_error, with_error

# They differ by design between runs of one comparison and have columns of their own.
_NOT_A_DIFFERENCE = frozenset({"seed", "run.dir"})


def target_row(run: Run) -> Row:
    """The evaluation that the run is judged by; {} while there is none."""
    return run.evaluations[run.target_set] if run.target_set else {}


def shift(run: Run) -> str:
    """`P01 to P08`; "" where it is not known."""
    about = run.about
    return (
        f"{joined(about['source'])} to {joined(about['target'])}" if about.get("source") and about.get("target") else ""
    )


def baseline_of(run: Run, runs: Sequence[Run]) -> tuple[float, str] | None:
    """Mean target top-1 of the finished source_only runs on the same shift, with a label; None without such a run.

    A source_only run is no baseline of itself.
    """
    if run.about.get("method") == "source_only":
        return None
    baselines = [other for other in runs if other.is_finished and other.about.get("method") == "source_only"]
    same = [other for other in baselines if shift(other) == shift(run)]
    values = [target_row(other).get("top1") for other in same if other.target_set == run.target_set]
    numbers = [float(value) for value in values if value is not None and is_number(value)]
    if not numbers:
        return None
    return statistics.fmean(numbers), "source_only" if len(numbers) == 1 else f"source_only, mean of {len(numbers)}"


def _group(run: Run) -> tuple[str, ...]:
    """What runs must share for a mean over them to mean anything: all but the seed and the folder."""
    settings = (f"{key}={value}" for key, value in flat(run.config).items() if key not in _NOT_A_DIFFERENCE)
    return method_name(run.about), shift(run), *settings


def _cells(run: Run) -> list[str]:
    about, target = run.about, target_row(run)
    source = next((row for name, row in run.evaluations.items() if name.startswith("source")), {})
    return [
        run.name + ("" if run.is_finished else " (unfinished)"),
        method_name(about),
        shift(run) or "-",
        str(about.get("seed", "-")),
        with_error(target.get("top1"), target.get("segments")),
        percent(target.get("top1_rgb")),
        percent(target.get("top1_flow")),
        percent(target.get("mean_recall")),
        percent(source.get("top1")),
        percent(about.get("clips_per_s")),
        duration(about["seconds"]) if is_number(about.get("seconds")) else "-",
    ]


def _mean_and_spread(rows: Sequence[Row], key: str) -> str:
    values = [float(row[key]) for row in rows if is_number(row.get(key))]
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def _mean_cells(group: tuple[str, ...], runs: Sequence[Run]) -> list[str]:
    rows = [target_row(run) for run in runs]
    scores = [_mean_and_spread(rows, key) for key in ("top1", "top1_rgb", "top1_flow", "mean_recall")]
    return [f"mean of {len(runs)} ± sd", group[0], group[1] or "-", "", *scores, "", "", ""]


def _comparison_table(runs: Sequence[Run]) -> str:
    header = [
        "run",
        "method",
        "shift",
        "seed",
        "target %",
        "rgb",
        "flow",
        "recall",
        "source %",
        "clips/s",
        "time",
    ]
    rows, means = [], set()
    for group in dict.fromkeys(_group(run) for run in runs):
        members = [run for run in runs if _group(run) == group]
        rows += [_cells(run) for run in members]
        complete = [run for run in members if run.is_finished]
        if len(complete) > 1:
            means.add(len(rows))
            rows.append(_mean_cells(group, complete))
    return table(header, rows, text_columns=3, mean_rows=frozenset(means)) + note(
        "target, source: fused top-1 ± one binomial standard error; rgb, flow, recall: on the target."
    )


def _comparison_plot(runs: Sequence[Run]) -> str:
    methods = list(dict.fromkeys(method_name(run.about) for run in runs))
    dots = []
    for run in runs:
        row = target_row(run)
        if is_number(row.get("top1")):
            css = colour(methods.index(method_name(run.about)), max(8, len(methods)))
            dots.append(Dot(run.name, float(row["top1"]), standard_error(row["top1"], row.get("segments")), css))
    if not dots:
        return note("No run has a target accuracy yet.")
    levels = {float(run.result["chance"]) for run in runs if is_number(run.result.get("chance"))}
    chance = levels.pop() if len(levels) == 1 else None
    drawing = dot_plot(dots, x_label="target top-1 (%)", chance=chance)
    return figure("Target accuracy", drawing, caption="Bars are one binomial standard error; colours are methods.")


def flat(config: Any, prefix: str = "") -> dict[str, str]:
    """{"train.lr": "0.01", ...} from a nested configuration."""
    if not isinstance(config, dict):
        return {prefix: str(config)}
    leaves: dict[str, str] = {}
    for name, value in config.items():
        leaves.update(flat(value, f"{prefix}.{name}" if prefix else str(name)))
    return leaves


def _differences(runs: Sequence[Run]) -> str:
    configs = [flat(run.config) for run in runs]
    if not all(run.config for run in runs):
        return note("Settings are not compared: not every run has a readable config.yaml.")
    keys = dict.fromkeys(key for config in configs for key in config)
    changed = [
        key for key in keys if key not in _NOT_A_DIFFERENCE and len({config.get(key, "-") for config in configs}) > 1
    ]
    if not changed:
        return note("All settings but the seed and the folder are the same.")
    rows = [[key, *(config.get(key, "-") for config in configs)] for key in changed]
    header = ["setting", *(run.name for run in runs)]
    return details("Settings that differ", table(header, rows, text_columns=len(header), free=True))


def comparison(runs: Sequence[Run]) -> str:
    """Table, plot and differing settings of several runs, as HTML."""
    return (
        "<h3>Runs compared</h3>"
        + _comparison_table(runs)
        + f'<div class="grid">{_comparison_plot(runs)}</div>'
        + _differences(runs)
    )
