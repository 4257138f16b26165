"""The study's page: what breaks where, the table over seeds, every picture, and what is missing."""

from collections.abc import Mapping, Sequence
from html import escape

from mmsada_hpc.observe.page import details, facts, figure, note, page, table
from mmsada_hpc.observe.wording import percent
from mmsada_hpc.scaling.drawing import Picture, inline, plain
from mmsada_hpc.scaling.pooling import points_of
from mmsada_hpc.scaling.report_tables import (
    Question,
    break_definition,
    break_lines,
    costs,
    every_cell,
    missing_lines,
    noise_line,
    summary,
)
from mmsada_hpc.scaling.results import Results

_CHAPTERS = (
    ("Accuracy and batch", ("accuracy_",)),
    ("Time to accuracy", ("time_to_", "clips_to_")),
    ("Noise scale", ("noise_scale",)),
    ("Throughput and efficiency", ("scaling_", "step_time")),
    ("Cost", ("cost_",)),
)
_ABSENT = {
    "Time to accuracy": "No cell was evaluated on the way (eval.every), so there is no time to accuracy.",
    "Noise scale": "No cell logged a noise scale.",
    "Throughput and efficiency": "No two shapes that differ in their ranks alone, so there is no scaling to show.",
    "Cost": "The cells did not record their time.",
}
_WIDE = frozenset({"scaling_weak", "scaling_strong", "step_time"})


def render(results: Results, asked: Question, pictures: Sequence[Picture], drawings: Mapping[str, str]) -> str:
    """The page as HTML text; `drawings` are the pictures' SVG files by name."""
    study = results.study
    parts = [
        f"<h1>{escape(study.path.stem)}: scaling study</h1>",
        f'<p class="sub">{escape(_subtitle(results))}</p>',
        _half(results),
        _facts(results, asked),
        "<h3>Where accuracy breaks</h3>",
        _breaks(results, asked),
        "<h3>Every recipe and batch</h3>",
        _summary(results, asked),
    ]
    for title, names in _CHAPTERS:
        shown = [picture for picture in pictures if picture.name.startswith(names)]
        parts += [f"<h3>{title}</h3>", _chapter(title, shown, drawings, asked, results)]
    header, *rows = every_cell(results, asked)
    parts += [_costs(results, asked), details("Every finished cell", table(header, rows)), _missing(results), _about()]
    return page(f"{study.path.stem}: mmsada scaling study", "".join(part for part in parts if part))


def _subtitle(results: Results) -> str:
    study = results.study
    recipes = {(one.cell.optimizer, one.cell.rule) for one in results.finished}
    batches = sorted({one.cell.global_batch for one in results.finished})
    ranks = sorted({one.cell.ranks for one in results.finished})
    alike = "samples (equal epochs)" if study.hold == "samples" else "updates (equal steps)"
    parts = [
        f"base {study.base}",
        f"base batch {study.base_batch}",
        f"every cell sees the same {alike}",
        f"{len(recipes)} recipe{'' if len(recipes) == 1 else 's'}",
        f"batches {', '.join(map(plain, batches))}",
        f"ranks {', '.join(map(str, ranks))}",
    ]
    return " · ".join(parts)


def _half(results: Results) -> str:
    if not results.awaited:
        return ""
    return note(
        f"Half a study: finished {len(results.finished)}, not finished {len(results.awaited)} (listed at the end). "
        "Means and breaks are of what is there and may change."
    )


def _facts(results: Results, asked: Question) -> str:
    points = points_of(results, asked.set_name)
    entries = [(str(len(results.finished)), f"of {len(results.study.cells)}", "cells finished")]
    if points:
        best = max(points, key=lambda point: point.mean)
        unit = "%" if best.error is None else f"± {best.error:.1f} %"
        entries.append((percent(best.mean), unit, f"best {asked.set_name}: {best.recipe}, batch {best.batch}"))
    chance = next((one.chance for one in results.finished if one.chance is not None), None)
    if chance is not None:
        entries.append((percent(chance), "%", "chance"))
    hours = [one.node_hours for one in results.finished if one.node_hours is not None]
    if hours:
        entries.append((f"{sum(hours):.3g}", "node-hours", "spent on the finished cells"))
    return facts(entries)


def _breaks(results: Results, asked: Question) -> str:
    if not points_of(results, asked.set_name):
        return note(f"No cell was scored on {asked.set_name}.")
    lines = "".join(f"<li>{escape(line)}</li>" for line in break_lines(results, asked.set_name))
    return f"<ul>{lines}</ul>{note(break_definition(results, asked.set_name))}{note(noise_line(results))}"


def _summary(results: Results, asked: Question) -> str:
    header, *rows = summary(results, asked)
    told = (
        "Means over seeds, ± one standard error of the mean where there are several. Rates: the highest of each "
        "stage. Noise scale: over the last half of training, in clips."
    )
    return table(header, rows) + note(told)


def _costs(results: Results, asked: Question) -> str:
    header, *rows = costs(results, asked)
    told = (
        "Means over cells. Training: the time of the updates; in all: every start, with evaluations and checkpoints, "
        "without the wait for a job."
    )
    return table(header, rows) + note(told)


def _chapter(
    title: str, shown: Sequence[Picture], drawings: Mapping[str, str], asked: Question, results: Results
) -> str:
    before = ""
    if title == "Time to accuracy" and asked.accuracy is not None:
        before = note(f"Waited for: {asked.accuracy:.1f} % on {asked.set_name}, {asked.why}.")
    if title == "Throughput and efficiency" and not any(one.name.startswith("scaling_") for one in shown):
        before = note(_ABSENT[title])
    if title == "Cost" and shown and not any(one.name == "cost_clips" for one in shown):
        before = note(f"Every cell saw {plain(results.finished[0].clips)} clips in training, within 2 %.")
    if not shown:
        return before or note(_ABSENT.get(title, "Nothing to show."))
    wide = [f'<div style="margin:26px 0">{_figure(one, drawings)}</div>' for one in shown if one.name in _WIDE]
    narrow = [_figure(one, drawings) for one in shown if one.name not in _WIDE]
    grid = f'<div class="grid">{"".join(narrow)}</div>' if narrow else ""
    return "".join([before, *wide, grid])


def _figure(picture: Picture, drawings: Mapping[str, str]) -> str:
    return figure(picture.title, inline(picture.name, drawings[picture.name]), caption=picture.caption)


def _missing(results: Results) -> str:
    if not results.missing:
        return note(f"All {len(results.finished)} cells are finished.")
    rows = missing_lines(results.missing)
    awaited, refused = len(results.awaited), len(results.missing) - len(results.awaited)
    title = f"Cells without a result: {awaited} not finished, {refused} refused"
    return details(title, table(["cell", "why"], rows, text_columns=2, free_columns=frozenset({1})))


def _about() -> str:
    return note("Beside this page: cells.csv, a line a cell with every figure, and each picture as PNG and SVG.")
