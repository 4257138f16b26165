"""In which state a run is: what Slurm says of its jobs, and where Slurm says nothing, what its files do."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from mmsada_hpc.cluster.heartbeat import Beat
from mmsada_hpc.cluster.squeue import GONE, Entry
from mmsada_hpc.jobs.facts import Facts, job_of
from mmsada_hpc.jobs.queue import Queue
from mmsada_hpc.jobs.why import LastWord, failed_rank, last_word
from mmsada_hpc.observe.wording import duration

State = Literal[
    "running", "saving", "requeued", "waiting", "finished", "cancelled", "stopped", "failed", "stale", "unknown"
]
STATES: tuple[State, ...] = get_args(State)
ACTIVE: tuple[State, ...] = ("running", "saving", "requeued", "waiting")
# Of several jobs of a run (a chain), the one that says most about it.
_MOST_ACTIVE = ("RUNNING", "SUSPENDED", "COMPLETING", "STAGE_OUT", "SIGNALING", "CONFIGURING", "REQUEUED")
_AT_WORK = ("RUNNING", "STAGE_OUT", "SIGNALING", "RESIZING")
_KILLED = {
    "NODE_FAIL": "a node failed",
    "TIMEOUT": "the time limit came, and the job had no warning or did not listen",
    "OUT_OF_MEMORY": "out of memory",
    "BOOT_FAIL": "a node did not boot",
    "DEADLINE": "its deadline came",
    "PREEMPTED": "preempted, and not requeued by Slurm",
}


@dataclass(frozen=True)
class Standing:
    """The state of a run, and why."""

    state: State
    note: str = ""
    job_id: str | None = None
    """The job it is in, or was in last; None outside Slurm."""


def stand(facts: Facts, queue: Queue, *, now: float | None = None) -> Standing:
    """The state of a run.

    Args:
        queue: asked for all of `facts.job_ids`.
        now: unix seconds.
    """
    now = time.time() if now is None else now
    entries = [queue.entries[job] for job in facts.job_ids if job in queue.entries]
    active = sorted((entry for entry in entries if not entry.has_ended), key=_rank)
    if active:
        return _of_active(facts, active, now)
    job = None if facts.is_local else facts.job_ids[-1]
    last = queue.entries.get(job) if job is not None else None
    if facts.result is not None:
        return Standing("finished", job_id=job)
    if (alive := facts.alive(now)) and (last is None or last.state == GONE):
        return _of_beats(facts, alive, queue, now)
    if facts.is_cancelled or (last is not None and last.state == "CANCELLED"):
        return Standing("cancelled", job_id=job)
    if job is not None and last is None:
        return _of_files(facts, queue, job, now)
    return _of_ended(facts, last, job, now)


def _rank(entry: Entry) -> int:
    return _MOST_ACTIVE.index(entry.state) if entry.state in _MOST_ACTIVE else len(_MOST_ACTIVE)


def _of_active(facts: Facts, active: Sequence[Entry], now: float) -> Standing:
    entry = active[0]
    more = [f"{len(active) - 1} more queued"] if len(active) > 1 else []
    has_begun = any(job_of(str(start.get("start", ""))) == entry.job_id for start in facts.starts)
    has_begun = has_begun or job_of(facts.start) == entry.job_id
    if entry.state in _AT_WORK:
        state: State = "running"
        words = [_of_running(facts, entry, now)]
    elif entry.state in ("COMPLETING", "STOPPED"):
        state, words = "saving", ["cancelled"] if facts.is_cancelled else []
    elif entry.state == "REQUEUED" or has_begun:
        state, words = "requeued", [_reason(entry)]
    else:
        state, words = "waiting", [_reason(entry)]
    if facts.result is not None and state in ("running", "saving"):
        return Standing("finished", "its job is about to end", entry.job_id)
    return Standing(state, ", ".join([*filter(None, words), *more]), entry.job_id)


def _reason(entry: Entry) -> str:
    if entry.state not in ("PENDING", "REQUEUED"):
        return entry.state.lower().replace("_", " ")
    return "" if entry.reason == "None" else entry.reason


def _of_running(facts: Facts, entry: Entry, now: float) -> str:
    ours = facts.beats if job_of(facts.start) == entry.job_id else ()
    if not ours or all(beat.has_ended for beat in ours):
        failed = failed_rank(ours)
        return failed or "starting"
    silent = facts.silent(now)
    return f"no sign of life from {_names(silent, now)}" if silent else ""


def _of_beats(facts: Facts, alive: Sequence[Beat], queue: Queue, now: float) -> Standing:
    """Ranks are at work that Slurm does not tell of: outside Slurm, or of a Slurm that is silent or another one."""
    job, silent = job_of(facts.start), facts.silent(now)
    words = [f"no sign of life from {_names(silent, now)}"] if silent else []
    if job is not None and not queue.silent:
        words.append(f"Slurm here does not know job {job}")
    return Standing("running", ", ".join(words), job)


def _of_files(facts: Facts, queue: Queue, job: str, now: float) -> Standing:
    """There is a job, and Slurm does not tell of it."""
    if not facts.beats or job_of(facts.start) != job:
        return Standing("unknown", f"job {job} has left no sign yet", job)
    return _of_ended(facts, None, job, now)


def _of_ended(facts: Facts, entry: Entry | None, job: str | None, now: float) -> Standing:
    """No job, no result."""
    is_its_own = job_of(facts.start) == job
    beats = facts.beats if is_its_own else ()
    said = last_word(facts, job)
    if said.kind == "cancelled":
        return Standing("cancelled", said.text, job)
    if reason := failed_rank(beats):
        return Standing("failed", reason, job)
    if beats and all(beat.has_ended for beat in beats):
        return Standing("failed" if said.kind == "error" else "stopped", said.text, job)
    killed = _KILLED.get(entry.state, "") if entry is not None else ""
    if said.kind == "stopped" and not killed:
        return Standing("stopped", said.text, job)
    if entry is not None and entry.state != GONE:
        ended = f"job {entry.job_id} ended ({entry.state}) without a result"
        return Standing("failed", killed or said.text or ended, job)
    if beats:
        return _of_silent(facts, said, job, now)
    if job is not None:
        return Standing("failed", said.text or f"job {job} is gone without a result", job)
    return Standing("failed", said.text) if said.kind == "error" else Standing("stopped", said.text)


def _of_silent(facts: Facts, said: LastWord, job: str | None, now: float) -> Standing:
    """The ranks say that they work, and nobody hears them."""
    silent = facts.silent(now)
    if said.kind == "error" and said.time > max(beat.time for beat in facts.beats) - facts.silence_s:
        return Standing("failed", said.text, job)  # an older word is of a start before this one
    return Standing("stale", f"died without a word: nothing from {_names(silent, now)}", job)


def _names(beats: Sequence[Beat], now: float) -> str:
    named = [f"rank {beat.rank} on {beat.host} for {duration(max(0.0, now - beat.time))}" for beat in beats[:2]]
    return ", ".join(named) + (f" and {len(beats) - 2} more" if len(beats) > 2 else "")
