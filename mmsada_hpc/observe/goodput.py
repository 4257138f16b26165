"""The goodput ledger: how much of a run's time moved the training on, what the rest went to, and who was slow.

Goodput is the share of the wall time, from the first begin to the last sign of life, queue and relaunch included, that
went into steps whose result was kept. Rank 0 keeps the account (`goodput_ledger`), in RUN/goodput.jsonl
(`goodput_rows`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mmsada_hpc.errors import UserError
from mmsada_hpc.observe.goodput_ledger import Ledger
from mmsada_hpc.observe.goodput_rows import StartRow, completed, read_starts
from mmsada_hpc.observe.metrics import read_metrics

__all__ = ["PARTS", "Goodput", "Ledger", "StartParts", "Straggler", "read_goodput", "straggler_scores"]

# Parts of the whole time, in the order in which a page shows them
PARTS = ("useful_s", "data_wait_s", "evaluate_s", "checkpoint_s", "start_s", "restart_s", "lost_s", "other_s")


@dataclass(frozen=True)
class Straggler:
    """How one rank keeps up."""

    rank: int
    host: str
    own_s: float
    """Mean seconds it needed for one of the latest 50 steps itself, before it waited for others."""
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
    total = {name: math.fsum(getattr(part, name) for part in history) for name in PARTS}
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
