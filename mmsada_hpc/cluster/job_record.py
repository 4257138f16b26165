"""jobs.jsonl: every job that was queued for a run, oldest first, one line each, for whoever asks about the run."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

JOBS_FILE = "jobs.jsonl"
CANCELLED_FILE = "cancelled"
"""In a run folder while a person wants the run stopped: no job of the run begins or requeues itself."""


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """One job of a run."""

    job_id: str
    """As Slurm writes it, `123` or `123_4` in an array."""
    submitted: float
    """Unix seconds."""
    nodes: int
    tasks_per_node: int
    minutes: int
    """Time limit."""
    stdout: str
    """What rank 0 prints."""
    stderr: str
    code: str
    """The snapshot it imports from, `code/<hash>`; empty = what is installed."""
    command: str
    """What a person typed."""
    profile: dict[str, Any] = field(default_factory=dict)
    """The cluster's profile with the command line's flags over it, to submit the run once more with."""


def add_job(run_dir: Path, job: JobRecord) -> None:
    """Append a job; a line is written whole, so that readers beside it never see half of one."""
    run_dir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(run_dir / JOBS_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)  # a profile may hold keys
    try:
        os.write(descriptor, (json.dumps(asdict(job)) + "\n").encode())
    finally:
        os.close(descriptor)


def read_jobs(run_dir: Path) -> list[JobRecord]:
    """The jobs of a run, oldest first; lines that cannot be read are left out."""
    path = run_dir / JOBS_FILE
    found = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            found.append(JobRecord(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found
