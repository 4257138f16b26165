"""Rows of action segments, and reading csv tables of them: here a labelled folder of videos (EPIC-KITCHENS tables are
in `epic_tables`).

Each reader turns one file format into rows of one type and names file and line of what it cannot use.
"""

import csv
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mmsada_hpc.errors import UserError

WHOLE_VIDEO = 0  # as `stop`: to the last frame that has flow
_VIDEO_COLUMNS = ("file", "domain", "split", "class")


@dataclass(frozen=True)
class LabelledVideo:
    """One row of labels.csv: a whole video is one segment. `video` is the file without its suffix, its name in the
    store.
    """

    file: str
    video: str
    domain: str
    split: str
    class_name: str


@dataclass(frozen=True)
class SegmentRow:
    """One segment of a longer video: RGB frames `start` to `stop`, 1-based, inclusive; `label` counts in class
    order.
    """

    uid: str
    domain: str
    split: str
    video: str
    start: int
    stop: int
    label: int


def read_labels(path: Path, *, classes: Sequence[str] = ()) -> tuple[list[LabelledVideo], tuple[str, ...]]:
    """Read a csv with columns file, domain, split, class (others are ignored); returns its rows and the class names
    in label order.

    Without `classes` the order is alphabetical. UserError naming file and line for an empty row or field, an unknown
    class, or a file named twice.
    """
    rows: list[LabelledVideo] = []
    lines: dict[str, tuple[int, str]] = {}
    for line, values in csv_rows(path, _VIDEO_COLUMNS):
        row = _labelled(path, line, values)
        if row.video in lines:
            first, file = lines[row.video]
            what = (
                f"{row.file} is named again (first in line {first})"
                if file == row.file
                else f"{row.file} and {file} (line {first}) differ only in their suffix; rename one"
            )
            raise UserError(f"{path}, line {line}: {what}")
        lines[row.video] = (line, row.file)
        if classes and row.class_name not in classes:
            raise UserError(
                f"{path}, line {line}: unknown class {row.class_name!r}{nearest(row.class_name, classes)}; "
                f"--classes has {', '.join(classes)}"
            )
        rows.append(row)
    return rows, tuple(classes) or tuple(sorted({row.class_name for row in rows}))


def _labelled(path: Path, line: int, values: dict[str, str]) -> LabelledVideo:
    file = PurePosixPath(values["file"])
    if file.is_absolute() or ".." in file.parts:
        raise UserError(f"{path}, line {line}: {file} must be a path inside the folder given as --videos")
    return LabelledVideo(str(file), str(file.with_suffix("")), values["domain"], values["split"], values["class"])


def nearest(word: str, known: Sequence[str]) -> str:
    """What an error message adds where something known is close to `word`: a question in brackets, or nothing."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def csv_rows(
    path: Path, columns: Sequence[str], *, optional: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, fields) of every row of a csv: the needed `columns`, each present and not blank, and those of
    `optional` that the file has.
    """
    header, body = _read_csv(path)
    require_columns(path, header, columns)
    if not body:
        raise UserError(f"{path}: no rows below the column names")
    where = {name: header.index(name) for name in (*columns, *optional) if name in header}
    for line, row in body:
        if not any(field.strip() for field in row):
            raise UserError(f"{path}, line {line}: empty row; delete it or fill in {', '.join(columns)}")
        values = {name: row[i].strip() if i < len(row) else "" for name, i in where.items()}
        blank = [name for name in columns if not values[name]]
        if blank:
            raise UserError(f"{path}, line {line}: {', '.join(blank)} is empty")
        yield line, values


def require_columns(path: Path, found: Sequence[str], columns: Sequence[str]) -> None:
    """UserError naming the first of `columns` that a table lacks."""
    missing = [name for name in columns if name not in found]
    if missing:
        raise UserError(
            f"{path}: no column {missing[0]!r}{nearest(missing[0], found)}; needed are {', '.join(columns)}, "
            f"found {', '.join(found) or 'none'}"
        )


def _read_csv(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a csv file in UTF-8 ({error})") from error
    return ([name.strip() for name in rows[0][1]] if rows else []), rows[1:]
