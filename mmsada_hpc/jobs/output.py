"""Where a rank's output lies, and its lines without those of submitit."""

import re
from dataclasses import dataclass
from pathlib import Path

from mmsada_hpc.errors import UserError
from mmsada_hpc.jobs.facts import Facts
from mmsada_hpc.observe.screen import log_path

_SUBMITIT = re.compile(r"submitit [A-Z]+ \(")
_LEAST_BYTES, _LINE_BYTES = 64 * 1024, 400
_RANK_0 = re.compile(r"_0_log\.(out|err)$")


@dataclass(frozen=True)
class Output:
    """A file that is there, or will be."""

    path: Path | None
    """None where nothing was printed into a file."""
    what: str
    """As a person reads it."""


def output_of(facts: Facts, *, rank: int = 0, errors: bool = False) -> Output:
    """What a rank prints: rank 0 its progress, the others only what libraries print, which is in their logs.

    Raises:
        UserError: the run has no such rank.
    """
    if rank and not _has_rank(facts, rank):
        raise UserError(f"--rank {rank}: {facts.path} has no such rank; it had {_ranks(facts)}")
    if rank and not errors:
        return Output(log_path(facts.path, rank), f"log of rank {rank}")
    record = next((job for job in reversed(facts.jobs) if Path(job.stdout).exists()), None)
    record = record or (facts.jobs[-1] if facts.jobs else None)
    if record is not None and not facts.is_local:
        path = Path(record.stderr if errors else record.stdout)
        if rank and not _RANK_0.search(path.name):
            return Output(path, f"errors of job {record.job_id}, all its ranks")
        return Output(_of_rank(path, rank), f"{'errors' if errors else 'output'} of job {record.job_id}")
    return _of_local(facts, rank, errors)


def last_clean_lines(path: Path, number: int) -> list[str]:
    """The last `number` lines (0 = all) without submitit's."""
    return read_end(path, number)[0]


def read_end(path: Path, number: int) -> tuple[list[str], int]:
    """`last_clean_lines`, only whole ones, and the position in the file after them.

    A last line without an end is left for later, unless there is no other.
    """
    size = path.stat().st_size
    begin = max(0, size - max(_LEAST_BYTES, number * _LINE_BYTES)) if number else 0
    with path.open("rb") as file:
        file.seek(begin)
        data = file.read(size - begin)
    end = data.rfind(b"\n") + 1 or len(data)
    lines = data[:end].decode(errors="replace").splitlines()
    lines = lines[1:] if begin and len(lines) > 1 else lines  # the first may be cut
    return [line for line in lines if not is_submitits(line)][-number:], begin + end


def is_submitits(line: str) -> bool:
    """Whether submitit wrote a line of a rank's output."""
    return _SUBMITIT.match(line) is not None


def _of_local(facts: Facts, rank: int, errors: bool) -> Output:
    """Of a start outside Slurm: by submitit on this host, or on a terminal, which keeps nothing."""
    found = list((facts.path / "submitit").glob(f"*_{rank}_log.{'err' if errors else 'out'}"))
    newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    log = log_path(facts.path, rank)
    if newest is not None and newest.stat().st_mtime >= facts.last_begin:
        return Output(newest, "output")
    return Output(log if log.exists() else None, "log; what was on the terminal is not kept")


def _of_rank(path: Path, rank: int) -> Path:
    return path.with_name(_RANK_0.sub(rf"_{rank}_log.\1", path.name))


def _has_rank(facts: Facts, rank: int) -> bool:
    return 0 <= rank < _ranks(facts) or log_path(facts.path, rank).exists()


def _ranks(facts: Facts) -> int:
    sizes = [start.get("world_size") for start in facts.starts]
    jobs = [job.nodes * job.tasks_per_node for job in facts.jobs]
    return max([1, *(size for size in sizes if isinstance(size, int)), *jobs])
