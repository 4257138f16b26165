"""The writer of the goodput ledger: one start of a run accounts for its time."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
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
        begun = round(begun, 4)  # as it will be read
        self._begun, self._ahead = begun, max(0.0, begun - self._clock())
        self._row = StartRow(start=start, begun=begun, seen=begun, ranks=world_size, hosts=tuple(hosts))
        self._own_sum = np.zeros(world_size)
        self._recent: deque[NDArray[np.float64]] = deque(maxlen=RECENT_STEPS)
        self._pause: tuple[Literal["evaluate", "checkpoint"], float] | None = None
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._closed, self._has_warned = threading.Event(), False
        self._thread = threading.Thread(target=self._keep_writing, name="goodput", daemon=True)
        if enabled:
            self.flush()
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
        self.flush()  # nothing else knows of them now

    def step(self, row: Mapping[str, Any], own_s: Sequence[float]) -> None:
        """A train row (`step_s`, `data_wait_s`), and the seconds each rank needed itself before it waited."""
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
            with self._writing:
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
        while not self._closed.wait(self._flush_seconds):
            self.flush()

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
