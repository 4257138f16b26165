"""The goodput ledger: how much of a run's time moved the training on, what the rest went to, and who was slow.

Goodput is the share of the wall time, from the first begin to the last sign of life, queue and relaunch included, that
went into steps whose result was kept. Rank 0 keeps the account, in RUN/goodput.jsonl (`goodput_rows`).
"""

from __future__ import annotations

import math
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmsada_hpc.errors import UserError
from mmsada_hpc.observe.goodput_rows import (
    GOODPUT_FILE,
    StartRow,
    append_row,
    completed,
    read_starts,
    seconds_of,
    with_step,
)
from mmsada_hpc.observe.metrics import read_metrics

RECENT_STEPS = 50
"""Over how many of the latest steps a straggler is looked for."""


def steady_clock() -> Callable[[], float]:
    """A clock of unix seconds that nobody can set back while it runs."""
    ahead = time.time() - time.monotonic()
    return lambda: ahead + time.monotonic()


class Ledger:
    """The account of one start, kept by rank 0: a row at once, every `flush_seconds` and at the end.

    A thread writes, so that a slow file system holds up no step. As a context manager it closes as "failed" on an
    exception and "finished" otherwise, unless it was closed before. A disk that is full is told once on stderr.

    Args:
        start: name of this start.
        hosts: of each rank.
        enabled: False on all ranks but 0, which then note nothing.
        begun: unix seconds at which the process began; None = now.
        clock: unix seconds.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        start: str,
        world_size: int,
        hosts: Sequence[str],
        enabled: bool,
        begun: float | None = None,
        flush_seconds: float = 15.0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._run_dir, self._enabled, self._flush_seconds = run_dir, enabled, flush_seconds
        self._clock = steady_clock() if clock is None else clock
        begun = self._clock() if begun is None else begun
        if enabled:  # one process may start a run twice, and clocks differ: starts follow each other
            begun = max([begun, *(earlier.seen for earlier in read_starts(run_dir))])
        self._begun, self._ahead = begun, max(0.0, begun - self._clock())
        self._row = StartRow(start=start, begun=begun, seen=begun, ranks=world_size, hosts=tuple(hosts))
        self._own_sum = np.zeros(world_size)
        self._recent: deque[NDArray[np.float64]] = deque(maxlen=RECENT_STEPS)
        self._pause: tuple[Literal["evaluate", "checkpoint"], float] | None = None
        self._lock, self._closed, self._has_warned = threading.Lock(), threading.Event(), False
        self._thread = threading.Thread(target=self._keep_writing, name="goodput", daemon=True)
        if enabled:
            self._thread.start()

    def lost(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Train and eval rows that this start drops from metrics.jsonl, as it does their steps again."""
        if not self._enabled:
            return
        self._complete_earlier(rows)
        steps = [row for row in rows if row.get("kind") != "eval"]
        step_s = sum(seconds_of(row, "step_s") for row in steps)
        wait_s = sum(min(seconds_of(row, "step_s"), seconds_of(row, "data_wait_s")) for row in steps)
        evaluate_s = sum(seconds_of(row, "seconds") for row in rows if row.get("kind") == "eval")
        with self._lock:
            self._row = replace(
                self._row,
                lost_steps=self._row.lost_steps + len(steps),
                lost_s=self._row.lost_s + step_s + evaluate_s,
                lost_data_wait_s=self._row.lost_data_wait_s + wait_s,
                lost_evaluate_s=self._row.lost_evaluate_s + evaluate_s,
            )

    def step(self, row: Mapping[str, Any], own_s: Sequence[float]) -> None:
        """A train row (`step_s`, `data_wait_s`), and the seconds each rank needed itself before it waited for others."""
        if not self._enabled:
            return
        with self._lock:
            self._row = with_step(self._row, row, now=self._now())
            own = np.asarray(own_s, dtype=np.float64)
            self._own_sum += own
            self._recent.append(own)

    @contextmanager
    def spend(self, name: Literal["evaluate", "checkpoint"]) -> Iterator[None]:
        """Wall time of a pause of the loop; a pause inside another is taken out of it."""
        with self._lock:
            outer, self._pause = self._pause, (name, self._now())
            if outer is not None:
                self._row = _with_pause(self._row, *outer, now=self._now())
        try:
            yield
        finally:
            with self._lock:
                assert self._pause is not None
                self._row = _with_pause(self._row, *self._pause, now=self._now())
                self._pause = None if outer is None else (outer[0], self._now())

    def flush(self) -> None:
        """Writes the row as it is now."""
        if self._enabled:
            self._write(self._snapshot(None))

    def close(self, ended: str) -> None:
        """The last row, with how the start ended: "finished", "stopped" or "failed". Later calls do nothing."""
        if self._closed.is_set():
            return
        self._closed.set()
        if self._enabled:
            self._thread.join()
            self._write(self._snapshot(ended))

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close("finished" if kind is None else "failed")

    def _now(self) -> float:
        return self._clock() + self._ahead

    def _snapshot(self, ended: str | None) -> StartRow:
        with self._lock:
            now = self._now()
            row = replace(self._row, seen=max(now, self._begun), ended=ended)
            if self._pause is not None:
                row = _with_pause(row, *self._pause, now=now)
            if not row.steps:
                return replace(row, start_s=max(0.0, now - row.begun - row.evaluate_s - row.checkpoint_s))
            own, recent = self._own_sum / row.steps, np.mean(list(self._recent), axis=0)
            return replace(row, own_s=tuple(own.tolist()), recent_s=tuple(recent.tolist()))

    def _keep_writing(self) -> None:
        while not self._closed.is_set():
            self.flush()
            self._closed.wait(self._flush_seconds)

    def _complete_earlier(self, dropped: Sequence[Mapping[str, Any]]) -> None:
        """What a killed start did after its last row is in the log alone, and about to be gone from there."""
        starts = [start for start in read_starts(self._run_dir) if start.begun < self._begun]
        try:
            rows = read_metrics(self._run_dir)
        except UserError:
            rows = []  # none yet, or damaged: the log itself tells of that
        # `self._row` bounds the last of them in time
        whole = completed([*starts, self._row], [*rows, *dropped])[:-1]
        for before, after in zip(starts, whole, strict=True):
            if after != before:
                self._write(after)

    def _write(self, row: StartRow) -> None:
        try:
            append_row(self._run_dir, row)
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                where = self._run_dir / GOODPUT_FILE
                print(f"{where}: cannot be written ({error.strerror}); the run goes on", file=sys.stderr, flush=True)


def _with_pause(row: StartRow, name: Literal["evaluate", "checkpoint"], since: float, *, now: float) -> StartRow:
    took = max(0.0, now - since)
    if name == "evaluate":
        return replace(row, evaluate_s=row.evaluate_s + took)
    return replace(row, checkpoint_s=row.checkpoint_s + took)


@dataclass(frozen=True)
class Straggler:
    """How one rank keeps up."""

    rank: int
    host: str
    own_s: float
    """Mean seconds it needed for one of the latest `RECENT_STEPS` steps itself, before it waited for others."""
    score: float
    """`own_s` over the median of the ranks: 1 keeps up, 1.5 takes half as long again."""


def straggler_scores(own_s: Sequence[float]) -> list[float]:
    """The seconds each rank needed itself over the median of all ranks; all 1 where nothing was measured.

    All ranks wait for the slowest in every step, so the step's own time looks the same on each: it is the time before
    the waiting that tells them apart. Of an even number of ranks the median is the mean of the two middle ones, so with
    two ranks a score stays below 2.
    """
    middle = statistics.median(own_s) if own_s else 0.0
    return [own / middle for own in own_s] if middle > 0 else [1.0] * len(own_s)


@dataclass(frozen=True)
class StartParts:
    """What one start's time went to, net of what was lost later: the parts add up to `total_s`."""

    name: str
    begun: float
    ended: str | None
    steps: int
    ranks: int
    useful_s: float
    data_wait_s: float
    evaluate_s: float
    checkpoint_s: float
    start_s: float
    other_s: float
    restart_s: float
    """Before it: from the last sign of the start before to its begin; not in `total_s`."""
    lost_s: float = 0.0
    lost_steps: int = 0
    """Of `steps`."""

    @property
    def total_s(self) -> float:
        """From its begin to its last sign of life."""
        pauses = self.evaluate_s + self.checkpoint_s + self.start_s
        return self.useful_s + self.data_wait_s + pauses + self.lost_s + self.other_s


@dataclass(frozen=True)
class Goodput:
    """What the time of a run went to, over all its starts: the parts add up to `total_s`. Seconds."""

    useful_s: float
    """Steps whose result was kept."""
    data_wait_s: float
    """In those steps, waiting for clips."""
    evaluate_s: float
    checkpoint_s: float
    """The loop stood still to save."""
    start_s: float
    """From the begin of each process to its first step."""
    restart_s: float
    """Between the last sign of a start and the begin of the next: queue and relaunch."""
    lost_s: float
    """Steps and evaluations that no checkpoint held and that were done again."""
    lost_steps: int
    other_s: float
    total_s: float
    goodput: float
    """`useful_s / total_s`, 0 to 1."""
    starts: int
    stragglers: tuple[Straggler, ...]
    """By rank, in the latest steps of the last start that made one."""
    history: tuple[StartParts, ...]
    """Every start, oldest first."""
    whole_start: tuple[Straggler, ...]
    """As `stragglers`, over all steps of that start."""


def read_goodput(run_dir: Path) -> Goodput | None:
    """The account of a run; None where there is no ledger.

    What a killed start (or one that still runs) did after its last row is completed from metrics.jsonl.
    """
    starts = read_starts(run_dir)
    if not starts:
        return None
    if not all(start.ended for start in starts):
        try:
            starts = completed(starts, read_metrics(run_dir))
        except UserError:
            starts = list(starts)  # without a readable log, what the ledger has
    history = _history(starts)
    total = {
        name: math.fsum(getattr(part, name) for part in history)
        for name in (
            "useful_s",
            "data_wait_s",
            "evaluate_s",
            "checkpoint_s",
            "start_s",
            "restart_s",
            "lost_s",
            "other_s",
        )
    }
    total_s = math.fsum(total.values())
    return Goodput(
        **total,
        lost_steps=sum(part.lost_steps for part in history),
        total_s=total_s,
        goodput=total["useful_s"] / total_s if total_s else 0.0,
        starts=len(history),
        stragglers=_stragglers(starts, "recent_s"),
        history=tuple(history),
        whole_start=_stragglers(starts, "own_s"),
    )


def _history(starts: Sequence[StartRow]) -> list[StartParts]:
    found = list[StartParts]()
    for index, row in enumerate(starts):
        _lose(found, row)
        found.append(
            StartParts(
                name=row.start,
                begun=row.begun,
                ended=row.ended,
                steps=row.steps,
                ranks=row.ranks,
                useful_s=row.useful_s,
                data_wait_s=row.data_wait_s,
                evaluate_s=row.evaluate_s,
                checkpoint_s=row.checkpoint_s,
                start_s=row.start_s,
                other_s=max(0.0, row.seen - row.begun - row.spent_s),
                restart_s=max(0.0, row.begun - starts[index - 1].seen) if index else 0.0,
            )
        )
    return found


def _lose(found: list[StartParts], row: StartRow) -> None:
    """Moves what `row`'s start had to do again from the parts of the starts before it, the latest first, to lost.

    Work from before there was a ledger is in no start's parts, and so in none of the sums.
    """
    left = {
        "useful_s": max(0.0, row.lost_s - row.lost_data_wait_s - row.lost_evaluate_s),
        "data_wait_s": row.lost_data_wait_s,
        "evaluate_s": row.lost_evaluate_s,
    }
    steps = row.lost_steps
    for index in reversed(range(len(found))):
        part = found[index]
        moved = {name: min(seconds, getattr(part, name)) for name, seconds in left.items()}
        gone = min(steps, part.steps - part.lost_steps)
        found[index] = replace(
            part,
            **{name: getattr(part, name) - seconds for name, seconds in moved.items()},
            lost_s=part.lost_s + sum(moved.values()),
            lost_steps=part.lost_steps + gone,
        )
        left, steps = {name: seconds - moved[name] for name, seconds in left.items()}, steps - gone


def _stragglers(starts: Sequence[StartRow], which: Literal["recent_s", "own_s"]) -> tuple[Straggler, ...]:
    row = next((start for start in reversed(starts) if getattr(start, which)), None)
    if row is None:
        return ()
    own_s: tuple[float, ...] = getattr(row, which)
    hosts = [*row.hosts, *["?"] * len(own_s)]
    return tuple(
        Straggler(rank, hosts[rank], own, score)
        for rank, (own, score) in enumerate(zip(own_s, straggler_scores(own_s), strict=True))
    )
