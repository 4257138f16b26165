"""What Slurm says of many jobs, asked once."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from textwrap import shorten

from mmsada_hpc.cluster.squeue import GONE, SlurmSilentError, slurm

_PATIENCE_S = 10.0
_FORMAT = "--format=%i|%T|%N|%r"
_ENDED = {
    *(GONE, "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED"),
    *("NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
}


@dataclass(frozen=True)
class Entry:
    """One job."""

    job_id: str
    state: str
    """Slurm's word, or GONE where it has forgotten the job."""
    nodes: str = ""
    reason: str = ""
    """Why it waits, or how it ended; `None` is Slurm's word for no reason."""

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it runs, or will by itself."""
        return self.state in _ENDED


@dataclass(frozen=True)
class Queue:
    """The jobs that were asked about."""

    entries: Mapping[str, Entry] = field(default_factory=dict)
    silent: str = ""
    """Why Slurm did not answer; "" = it did, or there was nothing to ask."""


def ask(job_ids: Collection[str], *, patience_s: float = _PATIENCE_S) -> Queue:
    """All jobs in one bounded call; never raises for a Slurm that is silent."""
    wanted = sorted(set(job_ids))
    if not wanted:
        return Queue()
    words = ("squeue", "--noheader", "--array", "--states=all", _FORMAT, f"--jobs={','.join(wanted)}")
    try:
        lines = slurm(*words, patience_s=patience_s)
    except SlurmSilentError as error:
        if "Invalid job id" not in str(error):
            return Queue(silent=_first_reason(str(error)))
        lines = ""
    known = {entry.job_id: entry for entry in map(_entry, lines.splitlines()) if entry is not None}
    return Queue({job: known.get(job, Entry(job, GONE)) for job in wanted})


def _first_reason(said: str) -> str:
    """Clients without a cluster say the same thing several ways, the plainest last."""
    plain = said.rpartition("fatal: ")[2]
    return shorten(plain if plain == said else f"squeue: {plain}", 100, placeholder=" ...")


def _entry(line: str) -> Entry | None:
    parts = line.strip().split("|", 3)
    return Entry(parts[0], parts[1], parts[2], parts[3]) if len(parts) == 4 else None
