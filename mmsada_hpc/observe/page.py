"""The frame of the report: one HTML page with its style inside, light and dark, readable on a phone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from types import MappingProxyType

# Okabe and Ito's colours, which stay apart for colour-blind readers; lighter ones on dark paper.
_LIGHT = ("#0072b2", "#d55e00", "#009e73", "#b8609a", "#c98a00", "#3f9fd6", "#5d6673", "#8c7f00")
_DARK = ("#5cb0ea", "#f58a4b", "#3fc9a0", "#e5a1cb", "#f0b840", "#9ad3f5", "#aab4c2", "#e6dc55")

SOURCE, TARGET = "var(--c0)", "var(--c1)"

_STYLE = """
:root{color-scheme:light dark;--paper:#fdfdfc;--card:#fff;--ink:#1c2129;--muted:#626b78;
  --rule:#dfe3e8;--grid:#eceff2;LIGHT}
@media(prefers-color-scheme:dark){:root{--paper:#14171c;--card:#1a1e25;--ink:#e7eaee;
  --muted:#9aa4b2;--rule:#323843;--grid:#272c35;DARK}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
  font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif;
  -webkit-text-size-adjust:100%}
main{max-width:1080px;margin:0 auto;padding:28px 20px 64px}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 4px;letter-spacing:-.01em}
h2{font-size:1.35rem;line-height:1.25;margin:56px 0 2px;padding-top:20px;
  border-top:2px solid var(--ink);overflow-wrap:anywhere}
h3{font-size:1.02rem;margin:36px 0 10px}
p{margin:6px 0;max-width:72ch}
a{color:var(--c0)}
.sub,.note,figcaption{color:var(--muted)}
.note,figcaption{font-size:.87rem}
figcaption{margin-top:6px}
.grid+.note,.note+.grid{margin-top:16px}
.grid+.grid{margin-top:26px}
.facts{display:flex;flex-wrap:wrap;gap:14px 34px;margin:18px 0 8px}
.facts div{min-width:110px}
.facts b{display:block;font-size:1.65rem;line-height:1.2;font-weight:600;letter-spacing:-.01em;
  font-variant-numeric:tabular-nums}
.facts b small{font-size:.95rem;font-weight:400;color:var(--muted)}
.facts span{font-size:.85rem;color:var(--muted)}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,400px),1fr));gap:26px 28px;
  align-items:start}
figure{margin:0;min-width:0}
figure h4{font-size:.92rem;font-weight:600;margin:0}
figure svg{display:block;width:100%;height:auto;margin-top:2px}
.key{list-style:none;display:flex;flex-wrap:wrap;gap:0 14px;margin:2px 0 0;padding:0;
  font-size:.82rem;color:var(--muted);min-height:1.4em}
.key li{display:flex;align-items:center;gap:6px;white-space:nowrap}
.key svg{width:20px;height:12px;margin:0;flex:none}
svg text{font-family:inherit;fill:var(--ink)}
svg .tick{font-size:10.5px;fill:var(--muted);font-variant-numeric:tabular-nums}
svg .name{font-size:11px;fill:var(--muted)}
svg .mark{font-size:10.5px;fill:var(--muted)}
svg .cell{font-size:11px;font-variant-numeric:tabular-nums}
svg .rule{stroke:var(--grid);fill:none}
svg .axis{stroke:var(--muted);fill:none}
svg .change{stroke:var(--muted);fill:none;stroke-dasharray:4 3}
.wide{overflow-x:auto;margin:8px 0}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:5px 12px 5px 0;text-align:right;white-space:nowrap;border-bottom:1px solid var(--rule)}
th{font-weight:600;color:var(--muted);vertical-align:bottom}
th.text,td.text{text-align:left}
td.text.free{white-space:normal;overflow-wrap:anywhere;min-width:9em}
.wide th:first-child,.wide td:first-child{position:sticky;left:0;background:var(--paper)}
tr.mean td{font-weight:600}
tr.rule td{border-top:2px solid var(--muted)}
details{margin:14px 0;border-top:1px solid var(--rule);padding-top:10px}
summary{cursor:pointer;font-weight:600;font-size:.95rem}
details.run{margin:0;padding:12px 0;border-top:1px solid var(--rule)}
details.run[open]>summary span{display:none}
details.run>div{scroll-margin-top:64px}
details.run[open]{padding-bottom:48px}
details.run>summary h2{display:inline;font-size:1.08rem;border:0;margin:0;padding:0}
details.run[open]>summary h2{font-size:1.35rem}
details.run>summary span{display:block;font-weight:400;font-size:.87rem;color:var(--muted);overflow-wrap:anywhere}
pre{overflow-x:auto;background:var(--card);border:1px solid var(--rule);border-radius:6px;
  padding:12px 14px;font:.8rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
code{font:.85em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
@media(max-width:560px){main{padding:18px 14px 48px}h1{font-size:1.4rem}.facts{
  gap:12px 28px}.facts b{font-size:1.35rem}
  table{font-size:.8rem}th,td{padding-right:9px}}
@media print{main{max-width:none}figure,table{break-inside:avoid}}
"""


def colour(index: int, count: int = 8) -> str:
    """Colour `index` of `count` categories: the palette where it reaches, evenly spread hues beyond."""
    if count <= len(_LIGHT):
        return f"var(--c{index % len(_LIGHT)})"
    return f"hsl({360 * index / count:.0f} 60% {45 + 12 * (index % 2)}%)"


def key(entries: Sequence[tuple[str, str]]) -> str:
    """A legend; each entry is (SVG of a 20 x 12 sample, name)."""
    items = "".join(
        f'<li><svg viewBox="0 0 20 12" aria-hidden="true">{sample}</svg>{escape(name)}</li>' for sample, name in entries
    )
    return f'<ul class="key">{items}</ul>' if entries else ""


def line_sample(css_colour: str, *, dash: str = "") -> str:
    """A short piece of a curve for `key`."""
    pattern = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<path d="M1 6H19" fill="none" style="stroke:{css_colour}" stroke-width="2.4"{pattern}/>'


def figure(title: str, drawing: str, *, legend: str = "", caption: str = "") -> str:
    """A drawing (or table) with its title above and a sentence on how to read it below. `caption` is plain text."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure><h4>{escape(title)}</h4>{legend}{drawing}{below}</figure>"


def note(text: str) -> str:
    """One muted line of plain text."""
    return f'<p class="note">{escape(text)}</p>'


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    text_columns: int = 1,
    mean_rows: frozenset[int] = frozenset(),
    rules: frozenset[int] = frozenset(),
    links: Mapping[int, str] = MappingProxyType({}),
    free: bool = False,
    free_columns: frozenset[int] = frozenset(),
) -> str:
    """A table of plain texts. The first `text_columns` columns are left-aligned; `free` lets long texts break,
    `free_columns` those of a few columns, which are left-aligned too.

    A line is drawn above the rows `rules`; `links` are where the first cells of rows lead to.
    """

    def cells(row: Sequence[str], tag: str, link: str = "") -> str:
        kinds = [
            ' class="text free"' if free or column in free_columns else ' class="text"' if column < text_columns else ""
            for column in range(len(row))
        ]
        texts = [escape(cell) for cell in row]
        if link:
            texts[0] = f'<a href="{escape(link, quote=True)}">{texts[0]}</a>'
        return "".join(f"<{tag}{kind}>{text}</{tag}>" for kind, text in zip(kinds, texts, strict=True))

    kind_of = {**dict.fromkeys(rules, " class=rule"), **dict.fromkeys(mean_rows, " class=mean")}
    body = "".join(
        f"<tr{kind_of.get(index, '')}>{cells(row, 'td', links.get(index, ''))}</tr>" for index, row in enumerate(rows)
    )
    head = f"<thead><tr>{cells(header, 'th')}</tr></thead>" if any(header) else ""
    return f'<div class="wide"><table>{head}<tbody>{body}</tbody></table></div>'


def details(title: str, inner: str) -> str:
    """A part that is folded away until it is asked for. `inner` is HTML."""
    return f"<details><summary>{escape(title)}</summary>{inner}</details>"


def chapter(title: str, about: str, inner: str, *, anchor: str, is_open: bool) -> str:
    """A foldable part of the page with a heading. A link to `anchor` unfolds it, because the anchor lies inside."""
    head = f"<summary><h2>{escape(title)}</h2><span>{escape(about)}</span></summary>"
    return f'<details class="run"{" open" if is_open else ""}>{head}<div id="{anchor}">{inner}</div></details>'


def facts(entries: Sequence[tuple[str, str, str]]) -> str:
    """The headline numbers; each entry is (number, unit or error, what it is)."""
    items = "".join(
        f"<div><b>{escape(number)} <small>{escape(unit)}</small></b><span>{escape(what)}</span></div>"
        for number, unit, what in entries
    )
    return f'<div class="facts">{items}</div>'


def page(title: str, body: str) -> str:
    """The whole document; it refers to nothing outside itself."""
    variables = [";".join(f"--c{index}:{value}" for index, value in enumerate(colours)) for colours in (_LIGHT, _DARK)]
    style = _STYLE.replace("LIGHT", variables[0]).replace("DARK", variables[1])
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body><main>{body}</main></body></html>\n"
    )
