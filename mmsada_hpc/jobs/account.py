"""The two figures of the goodput ledger that the table of runs shows, without reading the metrics of every run."""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsada_hpc.observe.goodput import Straggler, straggler_scores
from mmsada_hpc.observe.goodput_rows import GOODPUT_FILE

WORTH_SAYING = 1.2
"""Straggler scores above this are shown: the others wait a sixth of their time."""


@dataclass(frozen=True)
class Account:
    """What restarts have cost, and who is slow."""

    lost_s: float | None = None
    """Work that was done again, and the time between starts; None where there is no ledger."""
    slowest: Straggler | None = None
    """The slowest rank of the last start, of two or more."""


def read_account(run_dir: Path) -> Account:
    """From the last row of each start; what a kill has cut off after it is left out (`read_goodput` has it)."""
    rows = _last_rows(run_dir / GOODPUT_FILE)
    try:
        waits = [max(0.0, after["begun"] - before["seen"]) for before, after in itertools.pairwise(rows)]
        lost = sum(row.get("lost_s", 0.0) for row in rows) + sum(waits)
        return Account(float(lost) if rows else None, _slowest(rows))
    except (KeyError, TypeError):
        return Account()  # of another version


def _slowest(rows: list[dict[str, Any]]) -> Straggler | None:
    row = next((row for row in reversed(rows) if row.get("recent_s")), None)
    if row is None or len(row["recent_s"]) < 2:
        return None
    scores = straggler_scores(row["recent_s"])
    rank = max(range(len(scores)), key=scores.__getitem__)
    hosts = row.get("hosts", [])
    return Straggler(rank, hosts[rank] if rank < len(hosts) else "?", row["recent_s"][rank], scores[rank])


def _last_rows(path: Path) -> list[dict[str, Any]]:
    """Of each start. Rows of one start begin alike, up to `seen`, so only the last has to be parsed."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return []
    last = {line.partition(b'"seen"')[0]: line for line in lines}
    found = []
    for line in last.values():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            found.append(row)
    return sorted(found, key=lambda row: float(row.get("begun", 0)))
