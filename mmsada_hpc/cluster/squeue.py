"""What Slurm says about jobs; every call is bounded, as a cluster in trouble may not answer."""

import shutil
import subprocess
from collections.abc import Iterable

_PATIENCE_S = 20.0
RUNNING, GONE = "RUNNING", "GONE"
"""GONE: Slurm has forgotten the job, which has therefore ended."""


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


def job_states(job_ids: Iterable[str]) -> dict[str, str]:
    """State of each job (`PENDING`, `RUNNING`, `COMPLETING`, `CANCELLED`, ...) by its id; GONE where Slurm has none.

    Raises:
        SlurmSilentError: Slurm cannot be asked.
    """
    wanted = list(job_ids)
    if not wanted:
        return {}
    try:
        lines = slurm("squeue", "--noheader", "--array", "--states=all", "--format=%i %T", f"--jobs={','.join(wanted)}")
    except SlurmSilentError as error:
        if "Invalid job id" not in str(error):
            raise
        lines = ""
    known = dict(line.split() for line in lines.splitlines() if line.strip())
    return {job: known.get(job, GONE) for job in wanted}
