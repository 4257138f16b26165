"""Tables of action segments: a labelled folder of videos, or EPIC-KITCHENS tables in MM-SADA's columns (spec 4.2).

Each reader turns one file format into rows of one type and names file and line of what it cannot use.
"""

import csv
import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mmsada_hpc.errors import UserError

EPIC_VERBS = ("take", "put", "open", "close", "wash", "cut", "mix", "pour")
WHOLE_VIDEO = 0  # as `stop`: to the last frame that has flow
_VIDEO_COLUMNS = ("file", "domain", "split", "class")
_EPIC_COLUMNS = ("uid", "video_id", "start_frame", "stop_frame", "verb_class")


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
    for line, values in _rows(path, _VIDEO_COLUMNS):
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
                f"{path}, line {line}: unknown class {row.class_name!r}{_nearest(row.class_name, classes)}; "
                f"--classes has {', '.join(classes)}"
            )
        rows.append(row)
    return rows, tuple(classes) or tuple(sorted({row.class_name for row in rows}))


def _labelled(path: Path, line: int, values: dict[str, str]) -> LabelledVideo:
    file = PurePosixPath(values["file"])
    if file.is_absolute() or ".." in file.parts:
        raise UserError(f"{path}, line {line}: {file} must be a path inside the folder given as --videos")
    return LabelledVideo(str(file), str(file.with_suffix("")), values["domain"], values["split"], values["class"])


def parse_tables(specs: Iterable[str]) -> list[tuple[str, str, Path]]:
    """`DOMAIN/SPLIT=FILE` options as (domain, split, file); UserError naming the option that does not read so."""
    tables = []
    for spec in specs:
        name, _, file = spec.partition("=")
        domain, _, split = name.partition("/")
        if not (domain.strip() and split.strip() and file.strip()):
            raise UserError(f"--segments {spec}: write DOMAIN/SPLIT=FILE, for example D1/train=D1_train.csv")
        tables.append((domain.strip(), split.strip(), Path(file)))
    return tables


def read_epic_segments(tables: Iterable[tuple[str, str, Path]]) -> list[SegmentRow]:
    """Read EPIC-KITCHENS segment tables (csv, MM-SADA's columns); UserError naming file and line of a bad row or a
    uid that occurs twice.
    """
    rows: list[SegmentRow] = []
    seen: dict[str, str] = {}
    for domain, split, path in tables:
        for line, values in _rows(path, _EPIC_COLUMNS):
            row = _epic_row(path, line, values, domain=domain, split=split)
            place = f"{path}, line {line}"
            if row.uid in seen:
                raise UserError(f"{place}: uid {row.uid} occurs again (first in {seen[row.uid]})")
            seen[row.uid] = place
            rows.append(row)
    return rows


def _epic_row(path: Path, line: int, values: dict[str, str], *, domain: str, split: str) -> SegmentRow:
    start, stop, label = (
        _integer(path, line, name, values[name]) for name in ("start_frame", "stop_frame", "verb_class")
    )
    if not 1 <= start < stop:
        raise UserError(f"{path}, line {line}: frames {start} to {stop} are not a segment (frame numbers start at 1)")
    if not 0 <= label < len(EPIC_VERBS):
        raise UserError(
            f"{path}, line {line}: unknown class: verb_class {label} is not one of 0 ({EPIC_VERBS[0]}) to 7 "
            f"({EPIC_VERBS[-1]})"
        )
    video = values["video_id"]
    if "/" in video or video in (".", ".."):
        raise UserError(f"{path}, line {line}: video_id {video!r} is not the name of a video")
    return SegmentRow(values["uid"], domain, split, video, start, stop, label)


def _integer(path: Path, line: int, column: str, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"{path}, line {line}: {column} must be a whole number, found {text!r}") from error


def _nearest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _rows(path: Path, columns: tuple[str, ...]) -> Iterable[tuple[int, dict[str, str]]]:
    """(line number, needed fields) of every row, each field present and not blank."""
    header, body = _read_csv(path)
    missing = [name for name in columns if name not in header]
    if missing:
        raise UserError(
            f"{path}: no column {missing[0]!r}{_nearest(missing[0], header)}; needed are {', '.join(columns)}, "
            f"found {', '.join(header) or 'none'}"
        )
    if not body:
        raise UserError(f"{path}: no rows below the column names")
    where = {name: header.index(name) for name in columns}
    for line, row in body:
        if not any(field.strip() for field in row):
            raise UserError(f"{path}, line {line}: empty row; delete it or fill in {', '.join(columns)}")
        values = {name: row[i].strip() if i < len(row) else "" for name, i in where.items()}
        blank = [name for name, value in values.items() if not value]
        if blank:
            raise UserError(f"{path}, line {line}: {', '.join(blank)} is empty")
        yield line, values


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
