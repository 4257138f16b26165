"""The ends of files that may be large."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsada_hpc.observe.metrics import METRICS_FILE
from mmsada_hpc.observe.progress import RECENT_STEPS

Row = dict[str, Any]
_TAIL_BYTES = 64 * 1024
# Evaluations may lie far apart; one further back than this (thousands of steps) is not looked for.
_FAR_BYTES = 2 * 1024 * 1024
_EVAL = b'"kind": "eval"'


@dataclass(frozen=True)
class Recent:
    """The last rows of metrics.jsonl, oldest first."""

    train: tuple[Row, ...] = ()
    evals: tuple[Row, ...] = ()
    """Of the last evaluation, one a set."""


def read_tail(path: Path, *, limit: int = _TAIL_BYTES) -> bytes:
    """At most the last `limit` bytes of a file, from the begin of a line on; empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - limit))
            tail = file.read(limit)
    except OSError:
        return b""
    return tail if size <= limit else tail[tail.find(b"\n") + 1 :]


def last_lines(path: Path, *, limit: int = _TAIL_BYTES) -> list[str]:
    """The lines of `read_tail`."""
    return read_tail(path, limit=limit).decode(errors="replace").splitlines()


def read_recent(run_dir: Path) -> Recent:
    """The last updates and the last evaluation."""
    path = run_dir / METRICS_FILE
    rows = [row for row in map(_parse, read_tail(path).splitlines()) if row]
    train = [row for row in rows if row.get("kind") == "train"][-RECENT_STEPS:]
    evals = [row for row in rows if row.get("kind") == "eval"]
    if not evals:
        evals = [row for row in map(_parse, _far_evaluation(path)) if row and row.get("kind") == "eval"]
    last = evals[-1].get("global_step") if evals else None
    return Recent(tuple(train), tuple(row for row in evals if row.get("global_step") == last))


def _far_evaluation(path: Path) -> list[bytes]:
    """The lines around the last one of an evaluation, found by its words: parsing all would take too long."""
    tail = read_tail(path, limit=_FAR_BYTES)
    at = tail.rfind(_EVAL)
    if at < 0:
        return []
    end = tail.find(b"\n", at)
    return tail[max(0, at - 4096) : len(tail) if end < 0 else end].splitlines()


def _parse(line: bytes) -> Row:
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}
