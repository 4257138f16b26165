"""How the study's pictures look: the report's colours, at the width of a paper's column, as PNG and SVG."""

import importlib.util
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsada_hpc.data.shards import writing
from mmsada_hpc.errors import UserError

# The colours of the report's page, on paper; every curve has its own marker and dashes too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b8609a", "#c98a00", "#3f9fd6", "#5d6673", "#8c7f00")
MARKERS, DASHES = ("o", "s", "^", "D", "v", "P", "X", "*"), ("-", "--", "-.", ":")
INK, MUTED, GRID, PLAIN, PAPER = "#1c2129", "#626b78", "#eceff2", "#aab4c2", "#ffffff"
COLUMN, PAGE, DPI = 3.5, 7.2, 200
"""Inches of one column and of two; points an inch."""
FONT = 7.5
_MOST_TICKS, _LEGEND_ROW = 6, 0.155
_NAMES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)", PLAIN: "var(--muted)", PAPER: "var(--paper)"}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # words stay words
    "font.size": FONT,
    "axes.titlesize": FONT + 0.5,
    "axes.labelsize": FONT,
    "xtick.labelsize": FONT - 0.5,
    "ytick.labelsize": FONT - 0.5,
    "legend.fontsize": FONT - 0.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.0,
}


@dataclass(frozen=True)
class Picture:
    """A figure to be written as `NAME.png` and `NAME.svg` and shown on the page."""

    name: str
    title: str
    caption: str
    figure: Any
    """matplotlib's."""


def need_matplotlib() -> None:
    """Raises UserError where it is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("matplotlib is not installed: pip install matplotlib, or the extra report")


def style() -> Any:
    """A context within which figures are made and written."""
    from matplotlib import rc_context

    return rc_context(_STYLE)


def panels(columns: int, *, width: float = COLUMN, height: float = 2.1) -> tuple[Any, list[Any]]:
    """A figure with `columns` axes beside each other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor=PAPER)
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for axis in axes:
        dress(axis)
    return figure, axes


def dress(axis: Any) -> None:
    """Two thin spines, a light grid behind the curves."""
    axis.set_axisbelow(True)
    axis.grid(color=GRID, linewidth=0.7)
    axis.tick_params(colors=MUTED, length=2.5)
    axis.xaxis.label.set_color(INK)
    axis.yaxis.label.set_color(INK)
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(PLAIN)


def look(index: int) -> dict[str, Any]:
    """Colour, marker and dashes of curve `index`."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index % len(DASHES)],
    }


def legend(figure: Any, axis: Any, *, columns: int = 2) -> None:
    """Below all axes, where it hides nothing and takes no height from them; nothing where no curve has a name."""
    handles, labels = axis.get_legend_handles_labels()
    if not handles:
        return
    columns = min(columns, len(labels))
    figure.set_figheight(figure.get_figheight() + _LEGEND_ROW * (1 + math.ceil(len(labels) / columns)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, handlelength=2.8)


def plain(value: float) -> str:
    """A tick's number as a person writes it: 0.02, 64, 4,096."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"


def clips_text(value: float) -> str:
    """A noise scale as a person reads it: 38, 1,230, unresolved."""
    if math.isinf(value):
        return "unresolved"
    return plain(float(f"{value:.2g}" if value < 100 else f"{value:.3g}"))


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers within a range: as many as are easy to read, and at least two where the range is not a point."""
    found = list[float]()
    for digits in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), tuple(digit / 10 for digit in range(10, 100))):
        candidates = [digit * 10.0**power for power in range(-9, 13) for digit in digits]
        inside = [round(tick, 12) for tick in candidates if low <= tick * 1.0001 and tick <= high * 1.0001]
        if len(inside) > _MOST_TICKS:
            return found if len(found) > 1 else inside[:: -(-len(inside) // _MOST_TICKS)]
        found = inside
    return found


def log_axis(axis: Any, which: str, values: Sequence[float], *, ticks: Sequence[float] | None = None) -> None:
    """A logarithmic axis that shows all `values` with a little room, labelled with plain numbers at round places.

    Values that are not positive have no place on it; without any other it stays as it is.
    """
    values = [value for value in values if value > 0]
    if not values:
        return
    low, high = min(values), max(values)
    room = max(1.08, (high / low) ** 0.06)
    low, high = low / room, high * room
    one = axis.xaxis if which == "x" else axis.yaxis
    getattr(axis, f"set_{which}scale")("log", base=2)
    getattr(axis, f"set_{which}lim")(low, high)
    places = list(log_ticks(low, high) if ticks is None else ticks)
    one.set_ticks(places, [plain(place) for place in places])
    axis.minorticks_off()


def write(pictures: Sequence[Picture], out: Path) -> dict[str, str]:
    """Write every picture as PNG and SVG into `out`; returns their SVG by name. Raises UserError of a full disk."""
    from matplotlib import rc_context

    found: dict[str, str] = {}
    for picture in pictures:
        with rc_context({**_STYLE, "svg.hashsalt": picture.name}):  # an equal picture is an equal file
            png, svg = (out / f"{picture.name}.{kind}" for kind in ("png", "svg"))
            writing(png, lambda p=picture, path=png: p.figure.savefig(path, dpi=DPI))  # type: ignore[misc]
            writing(svg, lambda p=picture, path=svg: p.figure.savefig(path, metadata={"Date": None}))  # type: ignore[misc]
        found[picture.name] = svg.read_text(encoding="utf-8")
    return found


def inline(name: str, svg: str) -> str:
    """An SVG file as a part of the page: its colours follow the page's light and dark, its ids are its own."""
    body = svg[svg.index("<svg ") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body)
    body = re.sub(r' xmlns(:xlink)?="[^"]*"', "", body).replace("xlink:href", "href")
    names: Mapping[str, str] = {**_NAMES, **{colour: f"var(--c{i})" for i, colour in enumerate(COLOURS)}}
    for colour, variable in names.items():
        body = body.replace(colour, variable)
    body = re.sub(r"font: ([\d.]+)px '[^']*'(, [^;\"]*)?", r"font-size: \1px", body)
    return re.sub(r' width="[^"]*pt"| height="[^"]*pt"', "", body, count=2)
