"""What Slurm says of many jobs, asked once."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from textwrap import shorten

from mmsada_hpc.cluster.squeue import Entry, SlurmSilentError, find_jobs

_PATIENCE_S = 10.0


@dataclass(frozen=True)
class Queue:
    """The jobs that were asked about."""

    entries: Mapping[str, Entry] = field(default_factory=dict)
    silent: str = ""
    """Why Slurm did not answer; "" = it did, or there was nothing to ask."""


def ask(job_ids: Collection[str], *, patience_s: float = _PATIENCE_S) -> Queue:
    """All jobs in one bounded call; never raises for a Slurm that is silent."""
    try:
        return Queue(find_jobs(job_ids, patience_s=patience_s))
    except SlurmSilentError as error:
        return Queue(silent=_first_reason(str(error)))


def _first_reason(said: str) -> str:
    """Clients without a cluster say the same thing several ways, the plainest last."""
    plain = said.rpartition("fatal: ")[2]
    return shorten(plain if plain == said else f"squeue: {plain}", 100, placeholder=" ...")
