"""The few SVG elements the report draws with, and round numbers for axes. Colours are CSS variables of the page."""

from __future__ import annotations

import math
from html import escape


def text(
    x: float, y: float, words: str, *, kind: str, anchor: str = "start", fill: str = "", turned: int | None = None
) -> str:
    """A line of text at (x, y); `kind` is a style of the page ("tick", "name", "mark", "cell"), `turned` in degrees."""
    place = f'x="{x:.1f}" y="{y:.1f}"' if turned is None else f'transform="translate({x:.1f} {y:.1f}) rotate({turned})"'
    style = f' style="fill:{fill}"' if fill else ""
    return f'<text class="{kind}" {place} text-anchor="{anchor}"{style}>{escape(words)}</text>'


def stroke(path: str, colour: str, *, width: float, opacity: float = 1.0, dash: str = "", cap: str = "butt") -> str:
    """The outline `path` (SVG path commands) in a CSS colour."""
    extra = ' stroke-linejoin="round"' + (f' stroke-dasharray="{dash}"' if dash else "")
    extra += f' stroke-opacity="{opacity:g}"' if opacity < 1 else ""
    extra += f' stroke-linecap="{cap}"' if cap != "butt" else ""
    return f'<path d="{path}" fill="none" style="stroke:{colour}" stroke-width="{width:g}"{extra}/>'


def styled(path: str, kind: str) -> str:
    """The outline `path` in a style of the page: "rule" (grid line), "axis" or "change"."""
    return f'<path class="{kind}" d="{path}"/>'


def dot(x: float, y: float, colour: str, *, radius: float, hint: str = "", opacity: float = 1.0) -> str:
    """A filled circle; `hint` shows when pointed at."""
    title = f"<title>{escape(hint)}</title>" if hint else ""
    faint = f' fill-opacity="{opacity:g}"' if opacity < 1 else ""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.3g}" style="fill:{colour}"{faint}>{title}</circle>'


def square(x: float, y: float, side: float, fill: str, *, opacity: float, hint: str) -> str:
    """A filled square with its upper left corner at (x, y)."""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{side:.1f}" height="{side:.1f}" rx="2" style="fill:{fill}" '
        f'fill-opacity="{opacity:.2f}"><title>{escape(hint)}</title></rect>'
    )


def rectangle(x: float, y: float, width: float, height: float, fill: str, *, hint: str) -> str:
    """A filled rectangle with its upper left corner at (x, y); nothing where it has no width."""
    if width <= 0:
        return ""
    return (
        f'<rect x="{x:.2f}" y="{y:.1f}" width="{width:.2f}" height="{height:.1f}" style="fill:{fill}">'
        f"<title>{escape(hint)}</title></rect>"
    )


def drawing(parts: list[str], *, width: float, height: float, label: str, max_width: float | None = None) -> str:
    """The SVG element; it fills the width it is given, up to `max_width` CSS pixels."""
    limit = f' style="max-width:{max_width:.0f}px"' if max_width else ""
    box = f'viewBox="0 0 {width:.0f} {height:.0f}"'
    return f'<svg {box}{limit} role="img" aria-label="{escape(label, quote=True)}">{"".join(parts)}</svg>'


def ticks(low: float, high: float, *, count: int = 5) -> list[float]:
    """At most about `count` round numbers that lie in [low, high]."""
    span = high - low
    if not math.isfinite(span) or span <= 0:
        return [low]
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def tick_label(value: float) -> str:
    """`1.5`, `20k`, `0.004`: short, without trailing zeros."""
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:.6g}"
