"""The part of the report that sets several runs side by side."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence

from mmsada_hpc.errors import UserError
from mmsada_hpc.observe.cells import mixture, score_of
from mmsada_hpc.observe.goodput import Goodput, read_goodput
from mmsada_hpc.observe.page import colour, details, figure, note, table
from mmsada_hpc.observe.panels import Dots, dot_plot, dot_range
from mmsada_hpc.observe.runs import Row, Run
from mmsada_hpc.observe.settings import differing, flat, settings_of, who_has_what
from mmsada_hpc.observe.table_formats import absent_text, head_texts, row_texts
from mmsada_hpc.observe.tables import ABLATION, METHODS, Options, Table, build_tables, runs_at, shifts_in_order
from mmsada_hpc.observe.wording import (
    duration,
    in_report_order,
    is_number,
    joined,
    percent,
    standard_error,
    streams,
    with_error,
)

# They differ by design between runs of one comparison and have columns of their own.
_NOT_A_DIFFERENCE = frozenset({"seed", "run.dir"})
# Above so many runs the page folds what belongs to single runs.
MANY = 6


def target_row(run: Run) -> Row:
    """The evaluation that the run is judged by; {} while there is none."""
    return run.evaluations[run.target_set] if run.target_set else {}


def target_top1(run: Run) -> float | None:
    """Fused accuracy that the run is judged by: the mean over `eval.checkpoints` where there are several."""
    return score_of("top1", run.target_set or "")(run)


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
    baselines = [other for other in runs if other.is_finished and other.label == "source_only"]
    same = [other for other in baselines if shift(other) == shift(run)]
    values = [target_top1(other) for other in same if other.target_set == run.target_set]
    numbers = [value for value in values if value is not None]
    if not numbers:
        return None
    return statistics.fmean(numbers), "source_only" if len(numbers) == 1 else f"source_only, mean of {len(numbers)}"


def _html_table(tabled: Table, seeds: int) -> str:
    rows = [[text.strip() for text in row_texts(row, seeds)] for row in tabled.rows]
    rules = [i for i, row in enumerate(tabled.rows) if i and row.group != tabled.rows[i - 1].group]
    header = [name.replace("->", "→") for name in head_texts(tabled)]
    absent = "".join(note(line) for line in absent_text(tabled))
    return table(header, rows, rules=frozenset(rules)) + absent


def _tables(runs: Sequence[Run]) -> str:
    """Methods by shift, as `mmsada table` has them; the ablation and the single streams folded away."""
    finished = [run for run in runs if run.is_finished]
    sets = Counter(run.target_set for run in finished if run.target_set)
    if not sets:
        return note("No run has a result yet.")
    try:
        made = build_tables(runs, Options(set_name=sets.most_common(1)[0][0]))
    except UserError as reason:
        return note(f"No table: {reason}.")
    seeds = len(made.notes.seeds)
    first, *others = made.tables
    notes = "".join(note(line.replace("->", "→")) for line in made.notes.lines)
    folded = "".join(
        details(f"{tabled.title[0].upper()}{tabled.title[1:]}", _html_table(tabled, seeds)) for tabled in others
    )
    return _html_table(first, seeds) + notes + folded


def _group(run: Run) -> tuple[str, ...]:
    """What runs must share for a mean over them to mean anything."""
    settings = (f"{key}={value}" for key, value in settings_of(run).items() if key != "classes")
    return run.label, shift(run), *settings


def _method(run: Run, runs: Sequence[Run]) -> str:
    """The label, with the recipe where there are several."""
    recipes = {other.about.get("recipe") for other in runs}
    return run.label if len(recipes) == 1 else f"{run.label}, {run.about.get('recipe') or 'recipe not known'}"


def _cells(run: Run, method: str, scored: Sequence[str]) -> list[str]:
    about, target = run.about, target_row(run)
    source = next((name for name in in_report_order(run.evaluations) if name.startswith("source")), "")
    return [
        run.name + ("" if run.is_finished else " (unfinished)"),
        method,
        shift(run) or "-",
        str(about.get("seed", "-")),
        with_error(target_top1(run), target.get("segments")),
        *(percent(target.get(f"top1_{stream}")) for stream in scored),
        percent(target.get("mean_recall")),
        percent(score_of("top1", source)(run)),
        percent(about.get("clips_per_s")),
        duration(about["seconds"]) if is_number(about.get("seconds")) else "-",
    ]


def _mean_and_spread(rows: Sequence[Row], key: str) -> str:
    values = [float(row[key]) for row in rows if is_number(row.get(key))]
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def _mean_cells(method: str, runs: Sequence[Run], scored: Sequence[str]) -> list[str]:
    rows = [{**target_row(run), "top1": target_top1(run)} for run in runs]
    scores = [_mean_and_spread(rows, key) for key in ("top1", *(f"top1_{s}" for s in scored), "mean_recall")]
    return [f"mean of {len(runs)} ± sd", method, shift(runs[0]) or "-", "", *scores, "", "", ""]


def _goodput_cell(spent: Goodput | None) -> str:
    return "-" if spent is None else percent(100 * spent.goodput)


def _runs_table(runs: Sequence[Run]) -> str:
    """One line a run, with a link to its part of the page, and the means of those that differ in the seed alone."""
    scored = streams({key for run in runs for key in target_row(run)}, "top1_")
    spent = {run.path: read_goodput(run.path) for run in runs}
    header = ["run", "method", "shift", "seed", "target %", *scored, "recall", "source %", "clips/s", "time"]
    header += ["goodput %"] if any(spent.values()) else []
    rows: list[list[str]] = []
    links: dict[int, str] = {}
    means: set[int] = set()
    for group in dict.fromkeys(_group(run) for run in runs):
        members = [(index, run) for index, run in enumerate(runs) if _group(run) == group]
        method = _method(members[0][1], runs)
        links.update({len(rows) + place: f"#run{index}" for place, (index, _) in enumerate(members)})
        cells = [[*_cells(run, method, scored), _goodput_cell(spent[run.path])] for _, run in members]
        rows += [row[: len(header)] for row in cells]
        complete = [run for _, run in members if run.is_finished]
        if len(complete) > 1:
            means.add(len(rows))
            rows.append([*_mean_cells(method, complete, scored), ""][: len(header)])
    return table(header, rows, text_columns=3, mean_rows=frozenset(means), links=links) + note(
        f"target, source: fused top-1 ± one binomial standard error; {', '.join([*scored, 'recall'])}: on the target."
    )


def _labels_in_order(runs: Sequence[Run]) -> list[str]:
    known = list(dict.fromkeys((*METHODS, *ABLATION)))
    labels = dict.fromkeys(run.label for run in runs)
    return sorted(labels, key=lambda label: (known.index(label) if label in known else len(known), label))


def _dots(runs: Sequence[Run], name: str, labels: Sequence[str]) -> list[Dots]:
    """One line a method on the shift `name`, one point a run; a mean only of runs that differ in the seed alone."""
    lines = []
    for index, label in enumerate(labels):
        members = runs_at([run for run in runs if run.label == label], name)
        scored = [(run, value) for run in members if (value := target_top1(run)) is not None]
        if not scored:
            continue
        members, points = [run for run, _ in scored], [(run.name, value) for run, value in scored]
        is_one, segments = len(points) == 1, target_row(members[0]).get("segments")
        alike = not mixture(members, set_name=members[0].target_set or "")
        mean = statistics.fmean(value for _, value in points) if alike and not is_one else None
        error = standard_error(points[0][1], segments) if is_one else None
        lines.append(Dots(label, points, mean, error, colour(index, max(8, len(labels)))))
    return lines


def _plots(runs: Sequence[Run]) -> str:
    """A panel a shift, all on one scale."""
    labels = _labels_in_order(runs)
    finished = [run for run in runs if run.is_finished]
    panels = {name: _dots(finished, name, labels) for name in shifts_in_order(runs) or [""]}
    panels = {name: lines for name, lines in panels.items() if lines}
    if not panels:
        return note("No finished run has a target accuracy yet.")
    levels = {float(run.result["chance"]) for run in runs if is_number(run.result.get("chance"))}
    chance = levels.pop() if len(levels) == 1 else None
    ends = dot_range([line for lines in panels.values() for line in lines], chance)
    figures = [
        figure(
            f"Target accuracy, {name.replace('->', '→')}" if name else "Target accuracy",
            dot_plot(lines, x_label="target top-1 (%)", chance=chance, ends=ends),
        )
        for name, lines in panels.items()
    ]
    how = "A point is a finished run, a stroke the mean over runs that differ in the seed alone; "
    whisker = "a single run has whiskers of one binomial standard error."
    return f'<div class="grid">{"".join(figures)}</div>' + note(how + whisker)


def _differences(runs: Sequence[Run]) -> str:
    configs = [flat(run.config) for run in runs]
    if not all(run.config for run in runs):
        return note("Settings are not compared: not every run has a readable config.yaml.")
    changed = [key for key in differing(configs) if key not in _NOT_A_DIFFERENCE]
    if not changed:
        return note("All settings but the seed and the folder are the same.")
    if len(runs) > MANY:
        rows = [[key, who_has_what(runs, key)] for key in changed]
        return details("Settings that differ", table(["setting", "values"], rows, text_columns=2, free=True))
    rows = [[key, *(config.get(key, "-") for config in configs)] for key in changed]
    header = ["setting", *(run.name for run in runs)]
    return details("Settings that differ", table(header, rows, text_columns=len(header), free=True))


def comparison(runs: Sequence[Run]) -> str:
    """Methods by shift, plots, every run and the settings that differ, as HTML."""
    every = _runs_table(runs)
    return "".join(
        [
            "<h3>Runs compared</h3>",
            _tables(runs),
            _plots(runs),
            details(f"Every run ({len(runs)})", every) if len(runs) > MANY else every,
            _differences(runs),
        ]
    )
