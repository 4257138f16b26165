"""`mmsada bench plot FILE... --out DIR`: one picture a benchmark, as PNG and SVG."""

import argparse
import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

from mmsada_hpc.bench.compare import Key, Measured, read_rows
from mmsada_hpc.bench.rows import Row, short
from mmsada_hpc.data.shards import writing
from mmsada_hpc.errors import UserError

HELP = (
    "Medians with their ranges: bars, with what each is compared with in grey; lines where a measurement was made at "
    "three or more N or message sizes. The newest row of a measurement counts, over all files."
)
# The colours of the report's page, on paper.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b8609a", "#c98a00", "#3f9fd6", "#5d6673", "#8c7f00")
_INK, _MUTED, _GRID, _PLAIN = "#1c2129", "#626b78", "#eceff2", "#aab4c2"
_DASHES = ("--", ":", "-.")
_WIDTH, _BAR, _LINES, _HEAD = 9.0, 0.3, 3.2, 0.95  # inches
_FEWEST_POINTS = 3
_SIZE = re.compile(r"\bN=(\d+)\b")
_MIB = 1 << 20


@dataclass(frozen=True)
class Bar:
    """A measurement, and how it is named within its panel."""

    label: str
    row: Row
    is_plain: bool
    """Others are compared with it."""


@dataclass(frozen=True)
class Curve:
    """One measurement at several sizes."""

    label: str
    xs: Sequence[float]
    rows: Sequence[Row]
    is_plain: bool


@dataclass(frozen=True)
class Panel:
    """One pair of axes: bars or curves, of one unit."""

    title: str
    unit: str
    better: str
    bars: Sequence[Bar] = ()
    curves: Sequence[Curve] = ()
    x_label: str = ""

    @property
    def inches(self) -> float:
        """Height."""
        return _HEAD + (_LINES if self.curves else _BAR * (len(self.bars) + 0.5))


def panels_of(rows: Sequence[Measured]) -> list[Panel]:
    """Rows of one benchmark, sorted into panels: curves where there are enough sizes, else bars of a like shape."""
    plain = {one.row.baseline for one in rows if one.row.baseline}
    curves, rest = _curves(rows, plain)
    return [*curves, *_bars(rest, plain)]


def _bandwidth(one: Measured) -> Measured:
    """The bus bandwidth of a message's time."""
    row, per_ms = one.row, one.row.details["busbw_GB_s"] * one.row.value
    figures = {"value": per_ms / row.value, "min": per_ms / row.max, "max": per_ms / row.min}
    return replace(one, row=replace(row, unit="GB/s bus bandwidth", better="higher", **figures))


def _curves(rows: Sequence[Measured], plain: set[str]) -> tuple[list[Panel], list[Measured]]:
    series: dict[tuple[str, str, str], list[tuple[float, Measured]]] = {}
    for one in [*rows, *(_bandwidth(one) for one in rows if "busbw_GB_s" in one.row.details)]:
        if (place := _place(one)) is not None:
            x, label, axis = place
            series.setdefault((one.row.unit, axis, label), []).append((x, one))
    long = {key: sorted(points, key=lambda p: p[0]) for key, points in series.items() if _is_long(points)}
    taken = {one.key for points in long.values() for _, one in points}
    panels: dict[tuple[str, str], list[Curve]] = {}
    for (unit, axis, label), points in long.items():
        of = [one.row for _, one in points]
        curve = Curve(label, [x for x, _ in points], of, all(row.name in plain for row in of))
        panels.setdefault((unit, axis), []).append(curve)
    found = [
        Panel("", unit, curves[0].rows[0].better, curves=curves, x_label=axis)
        for (unit, axis), curves in panels.items()
    ]
    return found, [one for one in rows if one.key not in taken]


def _place(one: Measured) -> tuple[float, str, str] | None:
    """Where a row lies on an axis of sizes: x, the name of its curve, the name of the axis."""
    rank = f", rank {one.key[2]}" if one.key[2] else ""
    details = one.row.details
    if "bytes" in details:
        return details["bytes"] / _MIB, f"{details['way']}, {details['team']}{rank}", "message, MiB"
    if (match := _SIZE.search(one.row.name)) is not None:
        label = " ".join(_SIZE.sub("", one.row.name).replace(" ,", ",").split()).strip(" ,")
        return float(match[1]), label + rank, "N, clips"
    return None


def _is_long(points: Sequence[tuple[float, Measured]]) -> bool:
    return len({x for x, _ in points}) >= _FEWEST_POINTS


def _bars(rows: Sequence[Measured], plain: set[str]) -> list[Panel]:
    """Rows that are compared with each other share a panel, as do the others with the same words behind the last comma
    of their names. Words that all names of a panel end in are its title.
    """
    groups: dict[tuple[str, str, str], list[Measured]] = {}
    by_name = {one.row.name: one.row for one in rows}
    for one in rows:
        root = _root(one.row, by_name)
        is_alone = root == one.row.name and root not in plain
        groups.setdefault((one.row.unit, one.row.better, root.rpartition(", ")[2] if is_alone else root), []).append(
            one
        )
    return [_bar_panel(group, plain) for group in groups.values()]


def _root(row: Row, rows: Mapping[str, Row]) -> str:
    """What it is compared with, and what that is compared with, and so on."""
    seen = {row.name}
    while row.baseline in rows and row.baseline not in seen:
        row = rows[row.baseline]
        seen.add(row.name)
    return row.name


def _bar_panel(group: Sequence[Measured], plain: set[str]) -> Panel:
    names = [one.row.name.split() for one in group]
    ends = 0
    while all(len(n) > ends + 1 and n[-1 - ends] == names[0][-1 - ends] for n in names):
        ends += 1
    if len(set(map(tuple, names))) == 1:  # one measurement, perhaps of several ranks: its first part is its label
        first_part, _, shape = group[0].row.name.rpartition(", ")
        ends = len(shape.split()) if first_part else 0
    bars = []
    for one, words in zip(group, names, strict=True):
        rank = f", rank {one.key[2]}" if one.key[2] else ""
        bars.append(Bar(" ".join(words[: len(words) - ends]).rstrip(",") + rank, one.row, one.row.name in plain))
    first = group[0].row
    return Panel(" ".join(names[0][len(names[0]) - ends :]), first.unit, first.better, bars=bars)


def draw(bench: str, panels: Sequence[Panel], frame: Mapping[str, Any], out: Path) -> list[Path]:
    """Write `out/BENCH.png` and `.svg`; returns both."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    height = sum(panel.inches for panel in panels) + 0.7
    # In the SVG words stay words, and an equal picture is an equal file.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": bench}):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained", facecolor="white")
        figure.suptitle(f"mmsada bench {bench}", x=0.01, ha="left", color=_INK, fontsize=13, fontweight="bold")
        axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=[panel.inches for panel in panels])[:, 0]
        for axis, panel in zip(axes, panels, strict=True):
            _dress(axis)
            (_draw_curves if panel.curves else _draw_bars)(axis, panel)
        figure.supxlabel(_circumstances(frame), x=0.01, ha="left", color=_MUTED, fontsize=8)
        png, svg = (out / f"{bench}.{kind}" for kind in ("png", "svg"))
        writing(png, lambda: figure.savefig(png, dpi=150))
        writing(svg, lambda: figure.savefig(svg, metadata={"Date": None}))
    return [png, svg]


def _draw_bars(axis: Any, panel: Panel) -> None:
    values = [bar.row.value for bar in panel.bars]
    spread = [[bar.row.value - bar.row.min for bar in panel.bars], [bar.row.max - bar.row.value for bar in panel.bars]]
    colours = [_PLAIN if bar.is_plain else _COLOURS[0] for bar in panel.bars]
    places = range(len(panel.bars))
    axis.barh(places, values, height=0.65, color=colours, xerr=spread, error_kw={"ecolor": _INK, "elinewidth": 0.9})
    axis.set_yticks(places, [bar.label for bar in panel.bars])
    axis.grid(axis="y", visible=False)
    low = min([0.0, *(bar.row.min for bar in panel.bars)])
    high = max([0.0, *(bar.row.max for bar in panel.bars)])
    axis.set_xlim(right=high + 0.25 * (high - low) or 1.0)
    axis.set_ylim(len(panel.bars) - 0.3, -0.7)
    for place, bar in zip(places, panel.bars, strict=True):
        ratio = f"  {bar.row.ratio:.2f}x" if bar.row.ratio is not None else ""
        axis.annotate(
            f"{short(bar.row.value)}{ratio}",
            (max(bar.row.max, 0.0), place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=_INK,
        )
    axis.set_title(panel.title, loc="left", fontsize=9, color=_INK)
    axis.set_xlabel(f"{panel.unit} ({panel.better} is better)", fontsize=8, color=_MUTED)


def _draw_curves(axis: Any, panel: Panel) -> None:
    colours, dashes = cycle(_COLOURS), cycle(_DASHES)
    for curve in panel.curves:
        colour, style = (_MUTED, next(dashes)) if curve.is_plain else (next(colours), "-")
        values = [row.value for row in curve.rows]
        axis.plot(curve.xs, values, style, color=colour, marker="o", markersize=3.5, linewidth=1.6, label=curve.label)
        axis.fill_between(
            curve.xs, [r.min for r in curve.rows], [r.max for r in curve.rows], color=colour, alpha=0.15, linewidth=0
        )
    axis.set_xscale("log", base=2)
    xs = sorted({x for curve in panel.curves for x in curve.xs})
    axis.set_xticks(xs, [f"{x:g}" if x >= 1 else f"1/{1 / x:g}" for x in xs])
    axis.minorticks_off()
    if all(row.min > 0 for curve in panel.curves for row in curve.rows):
        axis.set_yscale("log")
    axis.set_xlabel(panel.x_label, fontsize=8, color=_MUTED)
    axis.set_ylabel(f"{panel.unit} ({panel.better} is better)", fontsize=8, color=_MUTED)
    axis.set_title(panel.title, loc="left", fontsize=9, color=_INK)
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _dress(axis: Any) -> None:
    axis.set_axisbelow(True)
    axis.grid(color=_GRID)
    axis.tick_params(colors=_MUTED, labelsize=8, length=3)
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_PLAIN)


def _circumstances(frame: Mapping[str, Any]) -> str:
    ranks = f"{frame.get('world_size', 1)} ranks, " if frame.get("world_size", 1) != 1 else ""
    versions = frame.get("versions") or {}
    commit = str(frame.get("commit", ""))
    commit = commit[:10] + ("-dirty" if commit.endswith("-dirty") else "")
    torch, day = f"torch {versions.get('torch', '?')}", str(frame.get("date", ""))[:10]
    where = f"{frame.get('machine', '?')}, {frame.get('device', '?')}, {ranks}{torch}, {commit}, {day}"
    return f"{where}; medians with min - max"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mmsada bench plot`."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="rows of one or more runs")
    parser.add_argument(
        "--out", type=Path, default=Path("."), metavar="DIR", help="folder of the pictures (default: here)"
    )


def run(args: argparse.Namespace) -> int:
    """Draw every benchmark that the files have rows of."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("matplotlib is not installed: pip install matplotlib, or the extra report")
    rows: dict[Key, Measured] = {}
    for path in args.files:
        rows |= read_rows(path)
    rows = {key: one for key, one in rows.items() if one.has_figure}
    out: Path = args.out
    writing(out, lambda: out.mkdir(parents=True, exist_ok=True))
    for bench in dict.fromkeys(one.row.bench for one in rows.values()):
        of_bench = [one for one in rows.values() if one.row.bench == bench]
        for path in draw(bench, panels_of(of_bench), of_bench[-1].frame, out):
            print(path)
    return 0
