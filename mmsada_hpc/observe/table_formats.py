"""Tables as text: aligned for the terminal, Markdown, LaTeX, CSV, JSON."""

from __future__ import annotations

import csv
import io
import json
import textwrap
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from mmsada_hpc.observe.cells import Cell
from mmsada_hpc.observe.paper import UNVERIFIED
from mmsada_hpc.observe.tables import Row, Table, Tables

_PLAIN = str.maketrans({"±": "+-", "─": "-", "→": "->"})
_CSV_HEADER = ("table", "row", "origin", "mark", "column", "mean", "std", "n", "seeds", "state", "runs")
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "[": "{[}",  # bare, it would be an option of \item or of a row's end
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "->": r"$\to$", "±": r"$\pm$",
}  # fmt: skip


def cell_text(cell: Cell, seeds: int) -> str:
    """`42.5 ± 1.2`, with ` (n=2)` where it has fewer than `seeds` seeds; `36.6 [I-c#7]`, the paper's; `-`; `mixed`."""
    if cell.mean is None:
        return cell.state if cell.state == "mixed" else "-"
    text = f"{cell.mean:.1f}"
    if cell.mark:
        return f"{text} [{cell.mark}]"
    if cell.std is not None:
        text += f" ± {cell.std:.1f}"
    return f"{text} (n={cell.n})" if 0 < cell.n < seeds else text


def row_texts(row: Row, seeds: int) -> list[str]:
    """A row's name and cells."""
    return [row.name, *(cell_text(cell, seeds) for cell in row.cells)]


def head_texts(table: Table) -> list[str]:
    """The header of `row_texts`."""
    return ["method" if table.number < 3 else "stream: method", *table.columns]


def absent_text(table: Table) -> list[str]:
    """One line about the paper's rows that no run was given for; none where all are there."""
    return [f"no run of: {', '.join(table.absent)}"] if table.absent else []


def title_text(table: Table) -> str:
    """`Table 1: top-1 by method ...`."""
    return f"Table {table.number}: {table.title}"


def note_lines(tables: Tables) -> list[str]:
    """What belongs to all tables: how to read them, what is missing, and the paper's mark where its figures stand."""
    has_paper = any(row.origin == "paper" for table in tables.tables for row in table.rows)
    return [*tables.notes.lines, *([UNVERIFIED] if has_paper else [])]


def text_width(text: str) -> int:
    """Columns of a terminal that `text` takes: wide characters two, combining ones none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _padded(text: str, width: int, *, left: bool) -> str:
    space = " " * (width - text_width(text))
    return text + space if left else space + text


def _with_rules(table: Table, lines: Sequence[str], rule: str) -> list[str]:
    """The rows' lines, with a rule before the first and between groups."""
    out: list[str] = []
    for index, (row, line) in enumerate(zip(table.rows, lines, strict=True)):
        if index == 0 or row.group != table.rows[index - 1].group:
            out.append(rule)
        out.append(line)
    return out


def _terminal_table(table: Table, seeds: int) -> list[str]:
    texts = [head_texts(table), *(row_texts(row, seeds) for row in table.rows)]
    widths = [max(text_width(row[column]) for row in texts) for column in range(len(texts[0]))]
    lines = [
        "  ".join(
            _padded(cell, width, left=index == 0) for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in texts
    ]
    lines = [line.rstrip() for line in lines]
    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    return [title_text(table), "", lines[0], *_with_rules(table, lines[1:], rule), *absent_text(table), ""]


def as_terminal(tables: Tables, *, unicode: bool = True) -> str:
    """Aligned columns; with `unicode=False` in ASCII alone, but for names that are not."""
    lines = [line for table in tables.tables for line in _terminal_table(table, len(tables.notes.seeds))]
    notes = [textwrap.fill(line, 100, subsequent_indent="  ", break_on_hyphens=False) for line in note_lines(tables)]
    text = "\n".join([*lines, *notes]) + "\n"
    return text if unicode else text.translate(_PLAIN)


def _markdown_cells(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.strip().replace("\\", "\\\\").replace("|", "\\|") for cell in cells) + " |"


def _markdown_table(table: Table, seeds: int) -> list[str]:
    # Markdown has no rule inside a table: an empty row stands for it
    rows = [_markdown_cells(row_texts(row, seeds)) for row in table.rows]
    empty = _markdown_cells([""] * (1 + len(table.columns)))
    head = [_markdown_cells(head_texts(table)), "|---|" + "---:|" * len(table.columns)]
    absent = [f"\n{line}" for line in absent_text(table)]
    return [f"### {title_text(table)}", "", *head, *_with_rules(table, rows, empty)[1:], *absent, ""]


def as_markdown(tables: Tables) -> str:
    """A heading and a pipe table each, the notes as a list."""
    lines = [line for table in tables.tables for line in _markdown_table(table, len(tables.notes.seeds))]
    return "\n".join([*lines, *(f"- {line}" for line in note_lines(tables))]) + "\n"


def latex_text(text: str) -> str:
    """Plain text as LaTeX sets it."""
    out, index = "", 0
    while index < len(text):
        pair = text[index : index + 2]
        token = pair if pair in _LATEX else text[index]
        out += _LATEX.get(token, token)
        index += len(token)
    return out


def _latex_row(cells: Sequence[str]) -> str:
    return "  " + " & ".join(latex_text(cell.strip()) for cell in cells) + r" \\"


def _latex_table(table: Table, seeds: int) -> list[str]:
    rows = [_latex_row(row_texts(row, seeds)) for row in table.rows]
    below = [rf"\par\footnotesize {latex_text(line)}" for line in absent_text(table)]
    return [
        r"\begin{table}", r"\centering", rf"\caption{{{latex_text(title_text(table).partition(': ')[2])}}}",
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}", r"  \toprule", _latex_row(head_texts(table)),
        *_with_rules(table, rows, r"  \midrule"), r"  \bottomrule", r"\end{tabular}", *below, r"\end{table}", "",
    ]  # fmt: skip


def as_latex(tables: Tables) -> str:
    r"""One `table` environment each, in booktabs' rules, and the notes as an itemize that can be cut."""
    lines = ["% needs \\usepackage{booktabs}"]
    lines += [line for table in tables.tables for line in _latex_table(table, len(tables.notes.seeds))]
    notes = [rf"  \item {latex_text(line)}" for line in note_lines(tables)]
    return "\n".join([*lines, r"\begin{itemize}", *notes, r"\end{itemize}"]) + "\n"


def as_csv(tables: Tables) -> str:
    """One line a cell, numbers unrounded. `origin` runs, paper (with its mark) or level; no notes, but `state`."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_CSV_HEADER)
    for table in tables.tables:
        for row in table.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                numbers = ["" if value is None else repr(value) for value in (cell.mean, cell.std)]
                seeds, runs = " ".join(map(str, cell.by_seed)), " ".join(cell.runs)
                name = row.name.strip()
                writer.writerow(
                    [table.number, name, row.origin, cell.mark, column, *numbers, cell.n, seeds, cell.state, runs]
                )
    return out.getvalue()


def _json_cell(cell: Cell) -> dict[str, Any]:
    return {
        "mean": cell.mean, "std": cell.std, "n": cell.n, "by_seed": {str(s): v for s, v in cell.by_seed.items()},
        "state": cell.state, "mark": cell.mark, "runs": list(cell.runs),
    }  # fmt: skip


def _json_row(table: Table, row: Row) -> dict[str, Any]:
    cells = {column: _json_cell(cell) for column, cell in zip(table.columns, row.cells, strict=True)}
    return {"row": row.name.strip(), "origin": row.origin, "cells": cells}


def as_json(tables: Tables) -> str:
    """The tables as nested objects, numbers unrounded; `missing` and `notes` beside them."""
    value = {
        "tables": [
            {
                "number": table.number,
                "title": table.title,
                "columns": list(table.columns),
                "rows": [_json_row(table, row) for row in table.rows],
                "absent": list(table.absent),
            }
            for table in tables.tables
        ],
        "missing": [vars(place) for place in tables.notes.missing],
        "notes": note_lines(tables),
    }
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


FORMATS: dict[str, Callable[[Tables], str]] = {
    "text": as_terminal,
    "markdown": as_markdown,
    "latex": as_latex,
    "csv": as_csv,
    "json": as_json,
}
