"""The table of runs as text that fits a terminal: what matters less goes first where there is no room."""

import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmsada_hpc.jobs.account import WORTH_SAYING
from mmsada_hpc.jobs.state import STATES
from mmsada_hpc.jobs.summary import Summary
from mmsada_hpc.observe.wording import duration

_GAP = "  "
_NAME_SHARE, _NOTE_LEAST = 3, 24  # a name is cut to a third of the terminal before a column goes
_NONE = "-"


@dataclass(frozen=True)
class _Column:
    title: str
    text: Callable[[Summary], str]
    rank: int
    """The highest goes first where there is no room; 0 stays."""
    right: bool = False


def _step(run: Summary) -> str:
    return f"{run.stage}: {run.step}/{run.stage_steps}" if run.steps else _NONE


def _top1(run: Summary) -> str:
    if run.top1 is None:
        return _NONE
    return f"{run.top1:.1f}" if run.top1_of == "target" else f"{run.top1:.1f} {run.top1_of}"


def where(hosts: Sequence[str]) -> str:
    """`mn1`, `mn1 mn2`, `mn1 +3`: hosts, each once."""
    names = list(dict.fromkeys(hosts))
    return " ".join(names) if len(names) < 3 else f"{names[0]} +{len(names) - 1}"


def _lost(run: Summary) -> str:
    return duration(run.lost_s) if run.lost_s else _NONE


def _slowest(run: Summary) -> str:
    slowest = run.slowest
    if slowest is None or slowest.score <= WORTH_SAYING:
        return _NONE
    return f"rank {slowest.rank} {slowest.host} {slowest.score:.1f}x"


_COLUMNS = (
    _Column("run", lambda run: run.run, 0),
    _Column("state", lambda run: run.state, 0),
    _Column("stage: step", _step, 0),
    _Column("clips/s", lambda run: _NONE if run.clips_per_s is None else f"{run.clips_per_s:.1f}", 4, right=True),
    _Column("top-1 %", _top1, 2),
    _Column("left", lambda run: _NONE if run.eta_s is None else duration(run.eta_s), 1, right=True),
    _Column("job", lambda run: run.job_id or ("here" if run.hosts else _NONE), 3),
    _Column("where", lambda run: where(run.hosts) or _NONE, 7),
    _Column("restarts", lambda run: str(run.restarts or _NONE), 5, right=True),
    _Column("lost", _lost, 6, right=True),
    _Column("slowest rank", _slowest, 8),
)


def table(runs: Sequence[Summary], *, columns: int | None) -> str:
    """The runs, and below how many are in which state.

    Args:
        columns: of the terminal; None = as wide as it comes, and nothing is left out.
    """
    shown = [column for column in _COLUMNS if column.rank == 0 or any(_says(column, run) for run in runs)]
    if columns is not None:
        shown = _fitting(shown, runs, columns)
    widths = [_width(column, runs) for column in shown]
    if columns is not None:
        widths[0] -= max(0, _total(widths) - columns)
    lines = [_line([column.title for column in shown], shown, widths)]
    room = None if columns is None else columns - _total(widths) - len(_GAP)
    for run in runs:
        line = _line([column.text(run) for column in shown], shown, widths)
        lines += _with_note(line, run.note, room=room, columns=columns)
    in_all = count(runs) if columns is None else textwrap.fill(count(runs), columns)
    return "\n".join([*(line.rstrip() for line in lines), "", in_all])


def count(runs: Sequence[Summary]) -> str:
    """`12 runs: 3 running, 8 finished, 1 failed`."""
    states = Counter(run.state for run in runs)
    parts = [f"{states[state]} {state}" for state in STATES if states[state]]
    return f"{len(runs)} run{'' if len(runs) == 1 else 's'}: {', '.join(parts)}"


def _says(column: _Column, run: Summary) -> bool:
    return column.text(run) != _NONE


def _fitting(shown: list[_Column], runs: Sequence[Summary], columns: int) -> list[_Column]:
    kept = list(shown)
    while True:
        widths = [_width(column, runs) for column in kept]
        name = min(widths[0], columns // _NAME_SHARE)
        worst = max(kept, key=lambda column: column.rank)
        if name + _total(widths) - widths[0] <= columns or worst.rank == 0:
            return kept
        kept.remove(worst)


def _width(column: _Column, runs: Sequence[Summary]) -> int:
    return max(len(column.title), *(len(column.text(run)) for run in runs)) if runs else len(column.title)


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _line(texts: Sequence[str], shown: Sequence[_Column], widths: Sequence[int]) -> str:
    cells = [_end_of(texts[0], max(1, widths[0])), *texts[1:]]
    return _GAP.join(
        text.rjust(width) if column.right else text.ljust(width)
        for text, column, width in zip(cells, shown, widths, strict=True)
    )


def _end_of(name: str, width: int) -> str:
    """Cut at the front: the ends of paths are what tells runs apart."""
    return name if len(name) <= width else "…" + name[len(name) - width + 1 :]


def _with_note(line: str, note: str, *, room: int | None, columns: int | None) -> list[str]:
    """The note at the end of the line where it has room, else below it."""
    note = " ".join(note.split())
    if not note or room is None or columns is None:
        return [f"{line}{_GAP}{note}"]
    if len(note) <= room or room >= 2 * _NOTE_LEAST:
        return [line + _GAP + textwrap.shorten(note, room, placeholder=" ...")]
    return [line, "    " + textwrap.shorten(note, max(8, columns - 4), placeholder=" ...")]
