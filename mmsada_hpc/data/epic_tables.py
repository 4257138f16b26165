"""EPIC-KITCHENS segment tables (spec 4.1, 4.2): MM-SADA's pickles, a csv of the same columns, and EPIC's own
`EPIC_train_action_labels.csv`, from which a domain's rows are chosen by rule.

Which of them a file is, its contents say, not its name.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mmsada_hpc.data.restricted_pickle import MAGIC, read_frame
from mmsada_hpc.data.segments import SegmentRow, csv_rows, require_columns
from mmsada_hpc.errors import UserError

EPIC_VERBS = ("take", "put", "open", "close", "wash", "cut", "mix", "pour")
PARTICIPANTS = {"D1": "P08", "D2": "P01", "D3": "P22"}
_COLUMNS = ("uid", "video_id", "start_frame", "stop_frame", "verb_class")
_OPTIONAL = ("participant_id", "noun_class")  # only EPIC's own tables have nouns


@dataclass(frozen=True)
class EpicTable:
    """The segments that one `--segments` option gives, and in `note` how they were chosen where not all were taken."""

    rows: tuple[SegmentRow, ...]
    note: str = ""


@dataclass(frozen=True)
class _Line:
    """One row of a table and where it is, for error messages."""

    place: str
    values: dict[str, str]


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
    """The segments of (domain, split, file) tables; UserError naming file and line of a bad row or a uid that occurs
    twice.
    """
    return [row for table in read_epic_tables(tables) for row in table.rows]


def read_epic_tables(tables: Iterable[tuple[str, str, Path]]) -> list[EpicTable]:
    """`read_epic_segments`, table by table, with notes on what was chosen."""
    seen: dict[str, str] = {}
    found = []
    for domain, split, path in tables:
        lines, note = _chosen(path, list(_lines(path)), domain=domain, split=split)
        rows = []
        for line in lines:
            row = _segment(line, domain=domain, split=split)
            if row.uid in seen:
                raise UserError(f"{line.place}: uid {row.uid} occurs again (first in {seen[row.uid]})")
            seen[row.uid] = line.place
            rows.append(row)
        found.append(EpicTable(tuple(rows), note))
    return found


def _lines(path: Path) -> Iterator[_Line]:
    return _pickle_lines(path) if _is_pickle(path) else _csv_lines(path)


def _is_pickle(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(1) == MAGIC
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _csv_lines(path: Path) -> Iterator[_Line]:
    for number, values in csv_rows(path, _COLUMNS, optional=_OPTIONAL):
        yield _Line(f"{path}, line {number}", values)


def _pickle_lines(path: Path) -> Iterator[_Line]:
    frame = read_frame(path)
    require_columns(path, list(frame), _COLUMNS)
    names = [name for name in (*_COLUMNS, *_OPTIONAL) if name in frame]
    for number, values in enumerate(zip(*(frame[name] for name in names), strict=True)):
        line = _Line(f"{path}, row {number} (from 0)", dict(zip(names, (str(v).strip() for v in values), strict=True)))
        blank = [name for name in _COLUMNS if not line.values[name]]
        if blank:
            raise UserError(f"{line.place}: {', '.join(blank)} is empty")
        yield line


def _chosen(path: Path, lines: list[_Line], *, domain: str, split: str) -> tuple[list[_Line], str]:
    """The domain's rows. A table of several participants, or one that has nouns, is EPIC's own: there the participant
    and verb_class 0 to 7 choose (spec 4.1); any other table is taken whole.
    """
    present = sorted({line.values["participant_id"] for line in lines if "participant_id" in line.values})
    expected = _participant(domain)
    if len(present) < 2 and "noun_class" not in lines[0].values:
        if expected and present not in ([], [expected]):
            raise UserError(f"--segments {domain}/{split}={path}: {domain} is {expected}, its rows are of {present[0]}")
        return lines, ""
    if not present:
        raise UserError(f"{path}: no column 'participant_id', by which {domain} would be chosen")
    if expected is None:
        raise UserError(
            f"--segments {domain}/{split}={path}: the table has {len(present)} participant(s), and {domain!r} does not "
            f"say which; write {_domains()}, or a participant of the table: {', '.join(present)}"
        )
    own = [line for line in lines if line.values["participant_id"] == expected]
    if not own:
        raise UserError(
            f"--segments {domain}/{split}={path}: no rows of {expected}; the table has {', '.join(present)}"
        )
    rows = [line for line in own if 0 <= _integer(line, "verb_class") < len(EPIC_VERBS)]
    if not rows:
        raise UserError(f"--segments {domain}/{split}={path}: no row of {expected} has verb_class 0 to 7")
    return rows, (
        f"{domain}/{split}: {len(rows)} of {len(lines)} rows of {path.name} chosen: participant {expected}, verb_class "
        f"0 to 7 (left out: {len(own) - len(rows)} other verbs of {expected}, {len(lines) - len(own)} rows of other "
        f"participants)"
    )


def _participant(domain: str) -> str | None:
    """The participant that a domain's name says: D1 to D3 as published, or a participant's own name."""
    return PARTICIPANTS.get(domain) or (domain if re.fullmatch(r"P\d+", domain) else None)


def _domains() -> str:
    return ", ".join(f"{domain} (= {participant})" for domain, participant in PARTICIPANTS.items())


def _segment(line: _Line, *, domain: str, split: str) -> SegmentRow:
    start, stop, label = (_integer(line, name) for name in ("start_frame", "stop_frame", "verb_class"))
    if not 1 <= start < stop:
        raise UserError(f"{line.place}: frames {start} to {stop} are not a segment (frame numbers start at 1)")
    if not 0 <= label < len(EPIC_VERBS):
        raise UserError(
            f"{line.place}: unknown class: verb_class {label} is not one of 0 ({EPIC_VERBS[0]}) to 7 ({EPIC_VERBS[-1]})"
        )
    video = line.values["video_id"]
    if "/" in video or video in (".", ".."):
        raise UserError(f"{line.place}: video_id {video!r} is not the name of a video")
    return SegmentRow(line.values["uid"], domain, split, video, start, stop, label)


def _integer(line: _Line, column: str) -> int:
    text = line.values[column]
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"{line.place}: {column} must be a whole number, found {text!r}") from error
