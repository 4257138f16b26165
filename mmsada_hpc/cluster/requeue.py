"""After a stop inside a Slurm job: does this job ask to be run again, and how (law 6, D29-D34)."""

import os
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mmsada_hpc.cluster.job_record import CANCELLED_FILE
from mmsada_hpc.cluster.squeue import RUNNING, Entry, SlurmSilentError, find_jobs, slurm
from mmsada_hpc.durable import write_atomically

ASKED = "MMSADA_REQUEUE"
"""1 in the environment of a job that may be run again, 0 of a link of a chain, which must not."""
_TRIES, _BETWEEN_S = 3, 1.0


@dataclass(frozen=True)
class Decision:
    """Whether to requeue, and why, as a person reads it."""

    requeue: bool
    why: str


def slurm_job_id(environ: Mapping[str, str] | None = None) -> str | None:
    """The job that started this process as Slurm writes it, `123` or `123_4` in an array; None outside, and for ranks
    that `--cluster local` started inside a job, which is then the person's and not the run's.
    """
    env = os.environ if environ is None else environ
    if env.get("SUBMITIT_EXECUTOR") == "local":
        return None
    if "SLURM_ARRAY_JOB_ID" in env and "SLURM_ARRAY_TASK_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env.get("SLURM_JOB_ID")


def slurm_start_id(environ: Mapping[str, str] | None = None) -> str:
    """One word for this start of this job, another one after each requeue: `123.0`, `123.1`; `local` outside Slurm."""
    env = os.environ if environ is None else environ
    job = slurm_job_id(env)
    return "local" if job is None else f"{job}.{env.get('SLURM_RESTART_COUNT', '0')}"


def decide(run_dir: Path, *, by_person: bool, environ: Mapping[str, str] | None = None) -> Decision:
    """Whether a job that was told to stop, and has saved, should run again.

    A job in the state RUNNING is preempted, or near its time limit. A person's `scancel` has moved it on from there
    (COMPLETING), and a requeue would bring it back to life.

    A link of a chain that a person cancels also marks the run as cancelled, or the next link would go on.

    Args:
        by_person: it was Ctrl-C.
    """
    env = os.environ if environ is None else environ
    job = slurm_job_id(env)
    if job is None or by_person:
        return Decision(False, "the same command goes on from there")
    if (run_dir / CANCELLED_FILE).exists():
        return Decision(False, f"not requeued: the run was cancelled; `submit.py resume {run_dir}` goes on")
    is_link = env.get(ASKED) == "0"
    try:
        entry = _entry(job)
    except SlurmSilentError as error:
        return Decision(False, f"not requeued, as Slurm does not say whether job {job} was cancelled ({error})")
    if is_link and entry.state == RUNNING:
        return Decision(False, f"not requeued, as {ASKED}=0: the next job of the run goes on")
    if entry.state != RUNNING:
        if is_link and entry.reason == "None":  # not for a node that failed: then the next link should go on
            write_atomically(run_dir / CANCELLED_FILE, f"job {job} was cancelled\n".encode())
        ending = "so it was cancelled" if entry.reason == "None" else f"by {entry.reason}"
        return Decision(
            False, f"not requeued: job {job} is {entry.state}, {ending}; `submit.py resume {run_dir}` goes on"
        )
    if env.get(ASKED) != "1":
        return Decision(
            False, f"not requeued, as {ASKED}=1 is not set (the launcher's scripts do): the same command goes on"
        )
    return Decision(True, f"job {job} goes back to the queue, and on from there")


def requeue(handler: Callable[[], object] | None) -> None:
    """Ask for the job to be run again.

    Args:
        handler: submitit's, which counts time limits and keeps its pickle; None = plain `scontrol requeue`.

    Raises:
        SlurmSilentError: Slurm refused.
        Exception: submitit's own, when the job has reached its time limit too often.
    """
    if handler is None:
        slurm("scontrol", "requeue", str(slurm_job_id()))
        return
    try:
        handler()
    except SystemExit:  # submitit's way to end; this rank waits with the others, as an exit could end the job first
        return
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise SlurmSilentError(str(error)) from error


def wait_to_be_ended(is_told: Callable[[], bool], *, patience_s: float) -> None:
    """After a requeue every rank waits for Slurm to end it: a rank that exits 0 could make the job count as done."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline and not is_told():
        time.sleep(0.1)


def _entry(job: str) -> Entry:
    for attempt in range(_TRIES):
        try:
            return find_jobs([job])[job]
        except SlurmSilentError:
            if attempt == _TRIES - 1:
                raise
            time.sleep(_BETWEEN_S)
    raise AssertionError("the last try returns or raises")
