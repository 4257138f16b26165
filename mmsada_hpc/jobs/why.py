"""Why a run that is over has no result: the first line of it, from what its ranks and Slurm have left."""

import io
import pickle
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmsada_hpc.cluster.heartbeat import Beat
from mmsada_hpc.jobs.facts import Facts
from mmsada_hpc.jobs.tail import last_lines, read_tail
from mmsada_hpc.observe.screen import log_path

_OURS = re.compile(r"error: (.+)")
_STOPPED = re.compile(r"(not requeued\b.*|job \S+ goes back to the queue.*|stopped by .*)")
# The last line of a traceback: `RuntimeError: ...`, `mmsada_hpc.errors.UserError: ...`.
_RAISED = re.compile(r"(?:[\w]+\.)*([A-Z]\w*(?:Error|Exception|Stopped|Interrupt|Exit))(?:: (.*))?$")
_SLURMS = re.compile(r"(?:slurmstepd|srun|slurmd)\S*: (?:error: )?(.+)")
_BY_PERSON = re.compile(r"not requeued: .*\bcancelled")
_LARGEST_PICKLE = 1024 * 1024


@dataclass(frozen=True)
class LastWord:
    """What the last start of a job said at its end."""

    kind: str
    """error, stopped, cancelled, or "" where nothing was said."""
    text: str = ""
    time: float = 0.0
    """When, at the latest, it was said; unix seconds."""


def last_word(facts: Facts, job_id: str | None) -> LastWord:
    """Of a Slurm job from what it printed and returned; of a run outside Slurm from its log."""
    record = next((job for job in facts.jobs if job.job_id == job_id), None)
    if record is None:
        return _of_log(log_path(facts.path, 0))
    stderr = Path(record.stderr)
    lines = last_lines(stderr)
    said = _spoken(lines)
    if said.kind:
        return replace(said, time=_written(stderr))
    trace = _returned_trace(Path(str(stderr).replace("_log.err", "_result.pkl")))
    returned = _spoken(trace.splitlines())
    return returned if returned.kind else LastWord("error" if (slurms := _slurms(lines)) else "", slurms)


def _of_log(path: Path) -> LastWord:
    return replace(_spoken(last_lines(path)), time=_written(path))


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def failed_rank(beats: Iterable[Beat]) -> str:
    """The first rank that failed for a reason of its own; else what one says that lost the others; "" where none."""
    for phase in ("failed", "lost"):
        for beat in beats:
            if beat.phase == phase:
                reason = beat.why.strip().partition("\n")[0] or phase
                return f"rank {beat.rank} on {beat.host}: {reason}"
    return ""


def _spoken(lines: list[str]) -> LastWord:
    """The last line that says why, as one that was repeated or came later tells of this start and not of a former."""
    for line in reversed(lines):
        line = line.strip()
        if match := _STOPPED.match(line):
            return LastWord("cancelled" if _BY_PERSON.match(line) else "stopped", match[1])
        if match := _OURS.match(line):
            return LastWord("error", match[1])
        if match := _RAISED.match(line):
            kind, text = match[1], match[2] or ""
            if kind == "Stopped":
                return LastWord("stopped", text)
            return LastWord("error", text if kind == "UserError" else f"{kind}: {text}".removesuffix(": "))
    return LastWord("")


def _slurms(lines: list[str]) -> str:
    found = [match[1] for line in lines if (match := _SLURMS.match(line.strip()))]
    return found[0].strip("* ") if found else ""


def _returned_trace(path: Path) -> str:
    """The traceback that a rank returned through submitit; nothing of its file is run."""
    if not path.is_file() or path.stat().st_size > _LARGEST_PICKLE:
        return ""
    try:
        outcome, value = _PlainUnpickler(io.BytesIO(read_tail(path, limit=_LARGEST_PICKLE))).load()
    except (pickle.UnpicklingError, ValueError, EOFError, IndexError, KeyError, TypeError, AttributeError):
        return ""
    return value if outcome == "error" and isinstance(value, str) else ""


class _PlainUnpickler(pickle.Unpickler):
    """Of texts, numbers and what holds them."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} in a result")
