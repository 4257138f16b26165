"""What Slurm says about jobs; every call is bounded, as a cluster in trouble may not answer."""

import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

_PATIENCE_S = 20.0
_FORMAT = "--format=%i|%T|%N|%r"
RUNNING, GONE = "RUNNING", "GONE"
"""GONE: Slurm has forgotten the job, which has therefore ended."""
_ENDED = {
    *(GONE, "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED"),
    *("NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
}


class SlurmSilentError(RuntimeError):
    """Slurm did not answer, or answered with an error."""


def slurm(*words: str, patience_s: float = _PATIENCE_S) -> str:
    """Standard output of a Slurm client.

    Raises:
        SlurmSilentError: no such client, an error, or no answer in time; says which.
    """
    if shutil.which(words[0]) is None:
        raise SlurmSilentError(f"{words[0]} not found: this host has no Slurm")
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=patience_s, check=False)
    except subprocess.TimeoutExpired:
        raise SlurmSilentError(f"{words[0]}: no answer within {patience_s:.0f} s") from None
    if done.returncode:
        raise SlurmSilentError(f"{words[0]}: {' '.join(done.stderr.split()) or f'exit code {done.returncode}'}")
    return done.stdout


@dataclass(frozen=True)
class Entry:
    """One job."""

    job_id: str
    state: str
    """Slurm's word (`PENDING`, `RUNNING`, `COMPLETING`, ...), or GONE."""
    nodes: str = ""
    reason: str = ""
    """Why it waits, or how it ended; `None` is Slurm's word for no reason."""

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it runs, or will by itself."""
        return self.state in _ENDED


def find_jobs(job_ids: Iterable[str], *, patience_s: float = _PATIENCE_S) -> dict[str, Entry]:
    """Each job by its id, all in one call.

    Raises:
        SlurmSilentError: Slurm cannot be asked.
    """
    wanted = sorted(set(job_ids))
    if not wanted:
        return {}
    words = ("squeue", "--noheader", "--array", "--states=all", _FORMAT, f"--jobs={','.join(wanted)}")
    try:
        lines = slurm(*words, patience_s=patience_s)
    except SlurmSilentError as error:
        if "Invalid job id" not in str(error):
            raise
        lines = ""
    parts = [line.strip().split("|", 3) for line in lines.splitlines()]
    known = {part[0]: Entry(*part) for part in parts if len(part) == 4}
    return {job: known.get(job, Entry(job, GONE)) for job in wanted}
