"""RUN/goodput.jsonl: what each start of a run has spent its time on so far, appended as whole lines.

A row is cumulative over its start, so the last row of a start is all there is to know about it. Starts are told apart
by their name and begin: outside Slurm they all have the same name.
"""

from __future__ import annotations

import json
import math
import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from mmsada_hpc.observe.metrics import plain
from mmsada_hpc.observe.wording import is_number

GOODPUT_FILE = "goodput.jsonl"


@dataclass(frozen=True, kw_only=True)
class StartRow:
    """One start of a run, up to `seen`. Seconds of wall time of rank 0; what is in none of the parts is the rest."""

    start: str
    """Its name, `job.restart` in Slurm."""
    begun: float
    """Unix seconds: the process began."""
    seen: float
    """Unix seconds: when this row was true."""
    ended: str | None = None
    """`finished`, `stopped` or `failed`; None while it goes on, and of one that was killed."""
    steps: int = 0
    global_step: int | None = None
    """The last one counted here; later ones in metrics.jsonl are not."""
    useful_s: float = 0.0
    """Of its steps, without the wait for data; what a later start had to do again is still in it."""
    data_wait_s: float = 0.0
    evaluate_s: float = 0.0
    checkpoint_s: float = 0.0
    start_s: float = 0.0
    """Until its first step."""
    lost_steps: int = 0
    """Steps of earlier starts that no checkpoint held, so that this start does them again."""
    lost_s: float = 0.0
    """What those steps, and the evaluations after them, had taken."""
    lost_data_wait_s: float = 0.0
    """The part of `lost_s` that is in an earlier start's `data_wait_s`."""
    lost_evaluate_s: float = 0.0
    ranks: int = 1
    own_s: tuple[float, ...] = ()
    """Of each rank: mean seconds it needed for a step itself, before it waited for the others."""
    recent_s: tuple[float, ...] = ()
    """The same over the latest steps."""
    hosts: tuple[str, ...] = ()
    """Of each rank."""

    @property
    def spent_s(self) -> float:
        """All parts that have a name."""
        return self.useful_s + self.data_wait_s + self.evaluate_s + self.checkpoint_s + self.start_s


def seconds_of(row: Mapping[str, Any], key: str) -> float:
    """A duration in a row of metrics.jsonl; 0 where there is none."""
    value = row.get(key)
    return max(0.0, float(value)) if value is not None and is_number(value) else 0.0


def with_step(start: StartRow, row: Mapping[str, Any], *, now: float, most: float = math.inf) -> StartRow:
    """`start` after the train row `row`, which took at most `most` seconds of it. Its first step ends the starting."""
    step_s = seconds_of(row, "step_s")
    if not start.steps:
        pauses = start.evaluate_s + start.checkpoint_s
        start = replace(start, start_s=max(0.0, now - start.begun - step_s - pauses))
        most = math.inf
    took = min(step_s, most)
    wait = min(took, seconds_of(row, "data_wait_s"))
    return replace(
        start,
        steps=start.steps + 1,
        global_step=row.get("global_step", start.global_step),
        useful_s=start.useful_s + took - wait,
        data_wait_s=start.data_wait_s + wait,
    )


def completed(starts: Sequence[StartRow], metrics: Sequence[Mapping[str, Any]]) -> list[StartRow]:
    """Starts without a last word, with the rows of metrics.jsonl they wrote after their last row here.

    A kill takes what was not written yet: the steps and evaluations are found again, checkpoints and pauses are not.
    """
    timed = sorted((row for row in metrics if is_number(row.get("time"))), key=lambda row: float(row["time"]))
    times = [float(row["time"]) for row in timed]
    ends = [*(start.begun for start in starts[1:]), math.inf]
    return [
        start if start.ended else _complete(start, timed[bisect_right(times, start.begun) : bisect_right(times, end)])
        for start, end in zip(starts, ends, strict=True)
    ]


def _complete(start: StartRow, rows: Sequence[Mapping[str, Any]]) -> StartRow:
    for row in rows:
        time = float(row["time"])
        # a step that was going on at `seen` is in the rest so far; an evaluation that was going on is counted already
        room = max(0.0, time - start.begun - start.spent_s)
        if row.get("kind") == "train" and (
            start.global_step is None or row.get("global_step", math.inf) > start.global_step
        ):
            start = with_step(start, row, now=time, most=room)
        elif row.get("kind") == "eval" and time > start.seen:
            new = min(seconds_of(row, "seconds"), time - start.seen, room)
            start = replace(start, evaluate_s=start.evaluate_s + new)
        else:
            continue
        start = replace(start, seen=max(start.seen, time))
    return start


def append_row(run_dir: Path, start: StartRow) -> None:
    """Adds a row as one whole line, also after a line that a kill or a full disk has torn. Raises OSError."""
    run_dir.mkdir(parents=True, exist_ok=True)
    row = {key: _rounded(value) for key, value in asdict(start).items()}
    line = (json.dumps(plain(row)) + "\n").encode()
    descriptor = os.open(run_dir / GOODPUT_FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        is_torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, b"\n" + line if is_torn else line)
    finally:
        os.close(descriptor)


def _rounded(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


def read_starts(run_dir: Path) -> list[StartRow]:
    """The last row of every start, by its begin; lines that cannot be read are left out, no file is no start."""
    try:
        lines = (run_dir / GOODPUT_FILE).read_bytes().splitlines()
    except OSError:
        return []
    found = dict[tuple[str, float], StartRow]()
    for line in lines:
        row = _parsed(line)
        if row is not None:
            found[row.start, row.begun] = row
    return sorted(found.values(), key=lambda row: (row.begun, row.seen))


def _parsed(line: bytes) -> StartRow | None:
    names = {field.name for field in fields(StartRow)}
    try:
        values = {key: value for key, value in json.loads(line).items() if key in names}
        lists = {key: tuple(values[key]) for key in ("own_s", "recent_s", "hosts") if key in values}
        row = StartRow(**{**values, **lists})
        numbers = [row.begun, row.seen, row.spent_s, row.lost_s, row.steps + row.lost_steps, *row.own_s, *row.recent_s]
    except (ValueError, TypeError, AttributeError):
        return None
    return row if all(is_number(number) for number in numbers) else None
