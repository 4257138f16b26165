"""Before a run is queued: nobody else is at it, and no job of it is in the queue already."""

import fcntl
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mmsada_hpc.cluster.job_record import read_jobs
from mmsada_hpc.cluster.squeue import Entry, SlurmSilentError, find_jobs
from mmsada_hpc.errors import UserError
from mmsada_hpc.observe.record import read_record

LOCK_FILE = ".submit.lock"
_PATIENCE_S = 60.0


@contextmanager
def only_submitter(run_dirs: Iterable[Path], *, patience_s: float = _PATIENCE_S) -> Iterator[None]:
    """Hold the run folders, which are made, against other submitters: two at once must not queue a run twice.

    Raises:
        UserError: another one holds a folder for longer than `patience_s`, or it cannot be written.
    """
    with ExitStack() as stack:
        for run_dir in sorted(set(run_dirs)):  # in one order, so that two grids never wait for each other
            stack.enter_context(_locked(run_dir, patience_s))
        yield


def active_jobs(run_dirs: Iterable[Path]) -> dict[Path, Entry]:
    """Of each run that has one, the newest job that has not ended; Slurm is asked once.

    Raises:
        UserError: Slurm does not answer, so that nobody knows.
    """
    jobs = {run_dir: _job_ids(run_dir) for run_dir in run_dirs}
    try:
        entries = find_jobs(job_id for ids in jobs.values() for job_id in ids)
    except SlurmSilentError as error:
        raise UserError(f"Slurm does not say whether jobs of the run are still there ({error}); try again") from None
    found = {}
    for run_dir, ids in jobs.items():
        active = [entries[job_id] for job_id in ids if not entries[job_id].has_ended]
        if active:
            found[run_dir] = active[-1]
    return found


def _job_ids(run_dir: Path) -> list[str]:
    """Also of a job that a person queued by hand, once it has begun."""
    started = [str(start.get("start", "")).partition(".")[0] for start in read_record(run_dir)[-1:]]
    return [*(job.job_id for job in read_jobs(run_dir)), *(job for job in started if job[:1].isdigit())]


@contextmanager
def _locked(run_dir: Path, patience_s: float) -> Iterator[None]:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"run.dir={run_dir}: {error.strerror}; choose a folder that can be written") from None
    try:
        _wait_for_lock(descriptor, run_dir, patience_s)
        yield
    finally:
        os.close(descriptor)  # which lets go of the lock


def _wait_for_lock(descriptor: int, run_dir: Path, patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise UserError(f"{run_dir}: another submit has been at this run for {patience_s:.0f} s") from None
            time.sleep(0.1)
        except OSError as error:
            reason = f"{run_dir}: cannot be locked here ({error.strerror})"
            print(f"warning: {reason}; take care that nobody else submits the run right now", file=sys.stderr)
            return None
