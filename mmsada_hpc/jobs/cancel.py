"""`mmsada cancel`: stop runs for good (law 6: a cancelled run never requeues itself); it can be resumed by hand."""

import argparse
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

from mmsada_hpc.cluster.heartbeat import Beat
from mmsada_hpc.cluster.job_record import CANCELLED_FILE
from mmsada_hpc.cluster.squeue import Entry, SlurmSilentError, slurm
from mmsada_hpc.durable import write_atomically
from mmsada_hpc.errors import UserError
from mmsada_hpc.jobs.facts import Facts, checkpoint_words, is_rank_of, job_of, read_facts
from mmsada_hpc.jobs.find import Found, find_runs
from mmsada_hpc.jobs.queue import Queue, ask

# Slurm gives a job KillWait (30 s as it comes) to save; a full epilog comes on top.
_WAIT_S, _POLL_S = 90.0, 1.0

Answer = Literal["told", "nothing", "refused"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mmsada cancel`."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="runs, ends of their paths, or folders of runs (a grid)")
    parser.add_argument(
        "--wait",
        type=float,
        default=_WAIT_S,
        metavar="SECONDS",
        help=f"until they are gone ({_WAIT_S:.0f}); 0 = do not",
    )


def run(args: argparse.Namespace) -> int:
    """Cancel the runs; returns 0, or 1 where Slurm did not take it or a run is still there after the wait."""
    if args.wait < 0:
        raise UserError("--wait must be 0 or more seconds")
    paths = [run.path for run in find_runs(args.runs)]
    facts = [read_facts(Found(path, str(path))) for path in dict.fromkeys(paths)]
    queue = ask([job for one in facts for job in one.job_ids])
    answers = [_tell(one, queue) for one in facts]
    told = [one for one, answer in zip(facts, answers, strict=True) if answer == "told"]
    gone = _wait(told, seconds=args.wait) if told and args.wait else [one.path for one in told]
    for one in told if args.wait else ():
        print(_outcome(one, is_gone=one.path in gone, seconds=args.wait))
    return int("refused" in answers or len(gone) < len(told))


def _tell(facts: Facts, queue: Queue) -> Answer:
    """Tell everything of a run to stop, and say what was told."""
    jobs = [entry for job in facts.job_ids if (entry := queue.entries.get(job)) and not entry.has_ended]
    if jobs or (queue.silent and facts.job_ids and facts.result is None):
        return _cancel_jobs(facts, jobs, queue)
    ranks = _ranks_here(facts)
    if ranks:
        return _terminate(facts, ranks)
    elsewhere = sorted({beat.host for beat in facts.alive(time.time())})
    if elsewhere and job_of(facts.start) is None:
        print(f"{facts.path}: runs on {', '.join(elsewhere)}, outside Slurm; cancel it there", file=sys.stderr)
        return "refused"
    state = "finished" if facts.result is not None else "cancelled before" if facts.is_cancelled else "not running"
    print(f"{facts.path}: nothing to cancel, no job of it is queued or runs ({state})")
    return "nothing"


def _cancel_jobs(facts: Facts, jobs: Sequence[Entry], queue: Queue) -> Answer:
    """First the marker, so that a job that ends by itself right now is not requeued; then Slurm."""
    marker = facts.path / CANCELLED_FILE
    if not marker.exists():
        write_atomically(marker, f"{time.strftime('%Y-%m-%d %H:%M:%S %z')} on {socket.gethostname()}\n".encode())
    ids = [entry.job_id for entry in jobs] or list(facts.job_ids)
    states = ", ".join(f"job {entry.job_id} ({entry.state})" for entry in jobs) or f"job {', '.join(ids)}"
    try:
        if queue.silent:
            raise SlurmSilentError(queue.silent)
        slurm("scancel", *ids)
    except SlurmSilentError as error:
        print(
            f"{facts.path}: Slurm did not take it ({error}); the run will not requeue itself, but {states} may run on: "
            f"once Slurm answers, `scancel {' '.join(ids)}`",
            file=sys.stderr,
        )
        return "refused"
    print(f"{facts.path}: cancelled {states}", flush=True)
    return "told"


def _terminate(facts: Facts, ranks: Sequence[Beat]) -> Answer:
    """The ranks of this host stop at the next step, and by their common flag all others too."""
    for beat in ranks:
        with contextlib.suppress(ProcessLookupError):  # it ended by itself
            os.kill(beat.pid, signal.SIGTERM)
    names = ", ".join(f"{beat.rank} (process {beat.pid})" for beat in ranks)
    print(f"{facts.path}: told rank {names} on this host to save and stop", flush=True)
    return "told"


def _ranks_here(facts: Facts) -> list[Beat]:
    """Ranks outside Slurm that run on this host, each seen to have this run's log open."""
    if job_of(facts.start) is not None:
        return []
    ours = [beat for beat in facts.beats if beat.host == socket.gethostname() and not beat.has_ended]
    return [beat for beat in ours if is_rank_of(beat, facts.path)]


def _wait(told: Sequence[Facts], *, seconds: float) -> Collection[Path]:
    """Until nothing of the runs is left, or the time is over; returns those that are gone."""
    deadline, gone, shown = time.monotonic() + seconds, set[Path](), dict[Path, str]()
    while True:
        queue = ask([job for one in told for job in one.job_ids])
        for one in told:
            left = _left(one, queue)
            if not left:
                gone.add(one.path)
            elif left != shown.get(one.path) and "COMPLETING" in left:
                print(f"{one.path}: {left}, saving", flush=True)
                shown[one.path] = left
        if len(gone) == len(told) or time.monotonic() > deadline:
            return gone
        time.sleep(min(_POLL_S, max(0.0, deadline - time.monotonic()) + 0.01))


def _left(facts: Facts, queue: Queue) -> str:
    """What is still there of a run, in words; "" where nothing is."""
    if queue.silent:
        return "Slurm does not answer"
    jobs = [entry for job in facts.job_ids if (entry := queue.entries.get(job)) and not entry.has_ended]
    ranks = _ranks_here(facts)
    words = [f"job {entry.job_id} is {entry.state}" for entry in jobs]
    return ", ".join(words + ([f"{len(ranks)} rank(s) save"] if ranks else []))


def _outcome(before: Facts, *, is_gone: bool, seconds: float) -> str:
    """What is left of the run: its newest checkpoint."""
    after = read_facts(Found(before.path, before.name))
    if not is_gone:
        return f"{before.path}: still there after {seconds:.0f} s; `mmsada status {before.path}` shows it"
    if after.result is not None:
        return f"{before.path}: it had finished"
    if not after.checkpoints:
        return f"{before.path}: gone; no checkpoint was saved"
    name = after.checkpoints[-1]
    is_new = name not in before.checkpoints
    saved = f"saved at {checkpoint_words(name)}" if is_new else f"the newest checkpoint is {checkpoint_words(name)}"
    return f"{before.path}: gone; {saved}, `mmsada resume {before.path}` goes on from there"
