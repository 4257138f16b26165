"""`mmsada report RUN...`: one self-contained HTML page about one or several runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import numpy as np

from mmsada_hpc.errors import UserError
from mmsada_hpc.observe.compare import baseline_of, comparison, shift, target_top1
from mmsada_hpc.observe.curves import accuracy_chart, evaluation_chart, loss_charts, speed_charts
from mmsada_hpc.observe.embedding import MAX_POINTS, Embedding, UnusableFeaturesError, embed
from mmsada_hpc.observe.goodput import Goodput, read_goodput
from mmsada_hpc.observe.goodput_panel import goodput_panels
from mmsada_hpc.observe.page import SOURCE, TARGET, chapter, colour, details, facts, figure, key, note, page, table
from mmsada_hpc.observe.panels import circle_sample, cross_sample, embedding_svg
from mmsada_hpc.observe.runs import Run, find_runs, read_runs
from mmsada_hpc.observe.scores import class_names, class_table, confusion, evaluation_table, reliability_chart
from mmsada_hpc.observe.screen import Screen
from mmsada_hpc.observe.wording import (
    duration,
    in_report_order,
    is_number,
    method_name,
    percent,
    standard_error,
)

# A page about many runs embeds fewer clips of each, or it would take longer than reading it
_ALL_POINTS, _FEWEST_POINTS = 6000, 200
_OPEN_RUNS = 3


def _grid(figures: Sequence[str]) -> str:
    return f'<div class="grid">{"".join(figures)}</div>' if figures else ""


def _accuracy_fact(run: Run, name: str) -> tuple[str, str, str]:
    row, side = run.evaluations[name], name.partition("/")[0]
    steps, averaged = run.result.get("checkpoints"), run.result.get(f"{side}_top1")
    if name == f"{side}/test" and isinstance(steps, list) and len(steps) > 1 and is_number(averaged):
        spread = percent(run.result.get(f"{side}_top1_std"))
        return percent(averaged), "%", f"{name} top-1, mean of {len(steps)} checkpoints (sd {spread})"
    error = standard_error(row.get("top1"), row.get("segments"))
    unit = "%" if error is None else f"± {error:.1f} %"
    return percent(row.get("top1")), unit, f"{name} top-1, {row.get('segments', '?')} segments"


def _headline(run: Run, spent: Goodput | None) -> str:
    about, entries = run.about, []
    for side in ("target", "source"):
        names = [name for name in in_report_order(run.evaluations) if name.startswith(side)]
        if names:
            entries.append(_accuracy_fact(run, names[0]))
    if is_number(about.get("chance")):
        entries.append((percent(about["chance"]), "%", "chance"))
    if is_number(about.get("clips_per_s")):
        entries.append((percent(about["clips_per_s"]), "clips/s", "training throughput"))
    if is_number(about.get("seconds")):
        entries.append((duration(about["seconds"]), "", "time"))
    if spent is not None:
        entries.append((percent(100 * spent.goodput), "%", "goodput: time in updates that count"))
    return facts(entries)


def _subtitle(run: Run) -> str:
    about = run.about
    classes, steps, ranks = about.get("classes"), about.get("steps"), about.get("world_size")
    parts = [
        method_name(about),
        shift(run),
        f"{len(classes)} classes" if classes else "",
        f"seed {about['seed']}" if about.get("seed") is not None else "",
        f"{steps} steps" if steps else "",
        f"{ranks} rank{'' if ranks == 1 else 's'}" if ranks else "",
    ]
    return f'<p class="sub">{escape(" · ".join(part for part in parts if part))}</p>'


def _unfinished(run: Run) -> str:
    if run.is_finished:
        return ""
    step = max((row.get("global_step", 0) for row in (*run.train, *run.evals)), default=0)
    return note(f"No result.json: the run is not finished. What follows is its state at global step {step}.")


def _embedding_caption(embedding: Embedding) -> str:
    shown = (
        f"{len(embedding.xy)} of {embedding.clips} clips"
        if embedding.clips > len(embedding.xy)
        else f"{embedding.clips} clips"
    )
    parts = [f"{embedding.how}; {shown}."]
    if embedding.mixing is not None:
        parts.append(
            f"Of a clip's 10 nearest neighbours in feature space, {embedding.mixing:.0f} % come from the other domain "
            f"({embedding.full_mixing:.0f} % if fully mixed)."
        )
    if embedding.transfer is not None:
        parts.append(f"The nearest source clip has the same class for {embedding.transfer:.0f} % of target clips.")
    return " ".join(parts)


def _embedding_keys(labels: Sequence[int], names: Sequence[str]) -> dict[str, str]:
    ink = "var(--ink)"
    shapes = [(circle_sample(ink), "source"), (cross_sample(ink), "target")]
    classes = [(circle_sample(colour(label, max(8, len(names)))), names[label]) for label in labels if label >= 0]
    domains = [(circle_sample(SOURCE), "source"), (cross_sample(TARGET), "target")]
    return {"class": key([*shapes, *classes]), "domain": key(domains)}


def _load_embeddings(run: Run, most: int) -> tuple[dict[str, Embedding], list[str]]:
    """The embeddings that can be shown, and why the others cannot."""
    found, missing = {}, []
    for moment in ("before", "after"):
        try:
            found[moment] = embed(run.path / "features" / f"{moment}.npz", most=most)
        except UnusableFeaturesError as reason:
            missing.append(str(reason))
    return found, missing


def _embeddings(run: Run, most: int) -> str:
    found, missing = _load_embeddings(run, most)
    labels = sorted({int(label) for embedding in found.values() for label in np.unique(embedding.label)})
    names = class_names(run, max([*labels, 0]) + 1)
    keys = _embedding_keys(labels, names)
    figures = []
    for by in ("class", "domain"):
        for moment, embedding in found.items():
            title = f"{moment.capitalize()}, coloured by {by}"
            drawing = embedding_svg(embedding, by=by, classes=max(8, len(names)), title=title)
            caption = _embedding_caption(embedding) if by == "class" else ""
            figures.append(figure(title, drawing, legend=keys[by], caption=caption))
    return _grid(figures) + (note(f"Not shown: {'; '.join(missing)}.") if missing else "")


def _origin(run: Run) -> str:
    if not run.starts:
        return note("Command and versions: not recorded (no run.json).")
    last = run.starts[-1]
    versions = last.get("versions") or {}
    rows = [[str(name), str(value)] for name, value in last.items() if name != "versions"]
    rows += [[f"version of {name}", str(value)] for name, value in versions.items()]
    times = "" if len(run.starts) == 1 else note(f"Started {len(run.starts)} times; this is the last start.")
    return details("Command and versions", times + table(["", ""], rows, text_columns=2, free=True))


def _config(run: Run) -> str:
    if not run.config_text:
        return note("No config.yaml in the folder.")
    return details("Resolved configuration", f"<pre>{escape(run.config_text)}</pre>")


def _section(run: Run, runs: Sequence[Run]) -> str:
    curves, spent = [*loss_charts(run), *accuracy_chart(run)], read_goodput(run.path)
    parts = [
        _unfinished(run),
        _headline(run, spent),
        "<h3>Evaluation</h3>",
        evaluation_table(run),
        _grid([evaluation_chart(run, baseline=baseline_of(run, runs)), confusion(run)]),
        _grid([piece for piece in (class_table(run, runs), reliability_chart(run)) if piece]),
        "<h3>Training</h3>",
        _grid(curves) or note("No training step yet."),
        note("Thin lines are single steps, thick lines running means within a stage.") if curves else "",
        "<h3>Features of both domains</h3>",
        _embeddings(run, min(MAX_POINTS, max(_FEWEST_POINTS, _ALL_POINTS // len(runs)))),
        "<h3>Speed</h3>",
        _grid(speed_charts(run)) or note("No timed step yet."),
        goodput_panels(spent),
        _config(run),
        _origin(run),
    ]
    return "".join(parts)


def _teaser(run: Run) -> str:
    """What the folded part of a run shows of it."""
    value, parts = target_top1(run), [method_name(run.about), shift(run)]
    parts += [f"seed {run.about['seed']}"] if run.about.get("seed") is not None else []
    parts += [f"{run.target_set} {percent(value)} %"] if value is not None else []
    parts += [] if run.is_finished else ["unfinished"]
    return " · ".join(part for part in parts if part)


def render(runs: Sequence[Run], *, tell: Callable[[str], None] = lambda line: None) -> str:
    """The whole page as HTML text: of several runs first the comparison, then each, folded where there are many.

    `tell` is given a line about how far it is.
    """
    if len(runs) == 1:
        run = runs[0]
        body = f"<h1>{escape(run.name)}</h1>{_subtitle(run)}{_section(run, runs)}"
        return page(f"{run.name}: mmsada report", body)
    parts = [f"<h1>{len(runs)} runs</h1>", comparison(runs), '<div class="runs">']
    for index, run in enumerate(runs):
        tell(f"report: run {index + 1} of {len(runs)}")
        inner, is_open = _subtitle(run) + _section(run, runs), len(runs) <= _OPEN_RUNS
        parts.append(chapter(run.name, _teaser(run), inner, anchor=f"run{index}", is_open=is_open))
    return page(f"{len(runs)} runs: mmsada report", "".join([*parts, "</div>"]))


def write_report(
    paths: Sequence[str | Path], *, out: str | Path | None = None, tell: Callable[[str], None] = lambda line: None
) -> Path:
    """Writes the page about the run folders `paths` and returns where it is; `tell` hears of the progress.

    A path may also be a folder with runs at any depth. By default the page is report.html in the one folder given, or
    beside the first of several. Raises UserError for a folder without a run or a page that cannot be written.
    """
    runs = read_runs(find_runs(paths))
    first = Path(paths[0])
    default = first / "report.html" if len(paths) == 1 else first.resolve().parent / "report.html"
    path = Path(out) if out is not None else default
    if path.is_dir():
        raise UserError(f"--out {path} is a folder; name the HTML file to write")
    text = render(runs, tell=tell)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot write the report ({error.strerror}); choose another file with --out"
        ) from error
    return path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mmsada report`."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run (what run.dir was set to), or of runs")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="HTML file to write (default: RUN/report.html, or report.html beside the first of several RUNs)",
    )


def run(args: argparse.Namespace) -> int:
    """`mmsada report`: writes the page and prints where it is."""
    screen = Screen(sys.stderr)
    try:
        path = write_report(args.runs, out=args.out, tell=screen.set_live)
    finally:
        screen.set_live("")
    print(f"report: {path}")
    return 0
