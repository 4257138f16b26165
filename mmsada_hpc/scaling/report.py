"""`mmsada scale report STUDY`: one page, one CSV and the pictures about the cells that are finished."""

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from mmsada_hpc.data.shards import writing
from mmsada_hpc.durable import write_atomically
from mmsada_hpc.errors import UserError
from mmsada_hpc.observe.wording import percent
from mmsada_hpc.scaling.drawing import Picture, need_matplotlib, style, write
from mmsada_hpc.scaling.figures import accuracy_picture, cost_pictures, noise_picture, reach_pictures
from mmsada_hpc.scaling.figures_speed import scaling_picture, step_picture
from mmsada_hpc.scaling.pooling import points_of
from mmsada_hpc.scaling.report_page import render
from mmsada_hpc.scaling.report_tables import (
    Question,
    as_csv,
    break_definition,
    break_lines,
    costs,
    noise_line,
    question,
    summary,
)
from mmsada_hpc.scaling.results import Results, read_results
from mmsada_hpc.scaling.speed import KINDS
from mmsada_hpc.scaling.study import read_study

HELP = (
    "Accuracy against batch and where it breaks, time to accuracy, noise scale and critical batch, throughput and "
    "efficiency against ranks, what an update's time goes to, cost: index.html, cells.csv, and every picture as PNG "
    "and SVG. Reads run folders alone, finished or not."
)
FOLDER, PAGE, CELLS = "report", "index.html", "cells.csv"
_WIDTH = 120  # of the terminal's sentences


def pictures_of(results: Results, asked: Question) -> list[Picture]:
    """Every picture that the finished cells give, in the order of the page."""
    side, _, split = asked.set_name.partition("/")
    names = (asked.set_name, f"{'source' if side == 'target' else 'target'}/{split}")
    one_each = [
        *(accuracy_picture(results, name) for name in names),
        noise_picture(results),
        *(scaling_picture(results, kind) for kind in KINDS),
        step_picture(results),
    ]
    found = [picture for picture in one_each if picture is not None]
    if asked.accuracy is not None:
        found += reach_pictures(results, asked.set_name, asked.accuracy)
    return [*found, *cost_pictures(results, asked.set_name)]


def write_report(results: Results, asked: Question, out: Path) -> list[Path]:
    """Everything into the folder `out`; returns what was written, the page first.

    Raises:
        UserError: matplotlib is missing, or the folder cannot be written.
    """
    need_matplotlib()
    writing(out, lambda: out.mkdir(parents=True, exist_ok=True))
    with style():
        pictures = pictures_of(results, asked)
        drawings = write(pictures, out)
    texts = {PAGE: render(results, asked, pictures, drawings), CELLS: as_csv(results, asked)}
    for name, text in texts.items():
        writing(out / name, lambda name=name, text=text: write_atomically(out / name, text.encode()))  # type: ignore[misc]
    return [
        *(out / name for name in texts),
        *(out / f"{one.name}.{kind}" for one in pictures for kind in ("png", "svg")),
    ]


def terminal(results: Results, asked: Question) -> str:
    """The tables, the breaks and what is missing, as aligned text."""
    lines = list[str]()
    if points_of(results, asked.set_name):
        lines += [*break_lines(results, asked.set_name), "", break_definition(results, asked.set_name)]
    lines.append(noise_line(results))
    if asked.accuracy is not None:
        lines.append(f"Time to accuracy: {percent(asked.accuracy)} % on {asked.set_name}, {asked.why}.")
    lines.append(_counts(results))
    wrapped = [textwrap.fill(line, _WIDTH) for line in lines]
    return "\n".join([*_aligned(summary(results, asked)), "", *_aligned(costs(results, asked)), "", *wrapped])


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    head, *rows = (_line(row, widths) for row in table)
    return [head, "-" * len(head), *rows]


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
    return "  ".join([row[0].ljust(widths[0]), *rest])


def _counts(results: Results) -> str:
    awaited = results.awaited
    refused = len(results.missing) - len(awaited)
    told = f"{len(results.finished)} of {len(results.study.cells)} cells are finished"
    told += f", {refused} refused" if refused else ""
    if not awaited:
        return f"{told}."
    names = ", ".join(one.cell.name for one in awaited[:3]) + (", ..." if len(awaited) > 3 else "")
    return f"{told}, {len(awaited)} missing ({names}): half a study, its means may change."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mmsada scale report`."""
    parser.add_argument("study", type=Path, metavar="STUDY", help="a YAML, a file or a name inside configs/study/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as the cells were run with")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help=f"writes FOLDER/{FOLDER} (default: the study's own folder)"
    )
    parser.add_argument(
        "--accuracy",
        type=float,
        metavar="PERCENT",
        help="time to this one (default: 90 %% of the best, as the page says)",
    )
    parser.add_argument("--set", default="target/test", metavar="SET", help="evaluated set (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="TEXT", help="cells with this in their name")


def _check_set(results: Results, name: str) -> None:
    scored = sorted({one for cell in results.finished for one in cell.accuracy})
    if scored and name not in scored:
        raise UserError(f"--set {name}: no finished cell has scored it; they have {', '.join(scored)}")


def run(args: argparse.Namespace) -> int:
    """Write the report and print its table and where it is."""
    need_matplotlib()
    study = read_study(args.study, args.overrides, only=args.only)
    results = read_results(study)
    _check_set(results, args.set)
    asked = question(results, args.set, args.accuracy)
    page, *others = write_report(results, asked, (args.out or study.folder) / FOLDER)
    text = terminal(results, asked)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        text = text.replace("±", "+-")
    print(text)
    print(f"\nreport: {page} ({len(others)} files beside it)")
    return 0
