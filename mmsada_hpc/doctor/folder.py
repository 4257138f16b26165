"""The folder of the runs: can it be written, on what does it lie, how fast does it take a checkpoint."""

import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mmsada_hpc.doctor.report import Ask, Line

_CHUNK_MB = 4
_LONGEST_S = 15.0
_SLOW_MB_S = 20.0
_NODE_LOCAL = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))
_MEMORY = ("tmpfs", "ramfs")


@dataclass(frozen=True)
class Place:
    """Where a folder is.

    Args:
        folder: the folder, or the one above it that exists.
        kind: its file system's, such as ext4, nfs4, lustre.
    """

    folder: Path
    kind: str
    free_mb: float


def check(ask: Ask) -> list[Line]:
    """One line."""
    place = find(Path(ask.folder))
    return [judge(ask, place, write_speed(place.folder, ask.write_mb))]


def find(folder: Path) -> Place:
    """Where `folder` lies, or will lie once a run makes it."""
    there = folder.absolute()
    while not there.is_dir():
        there = there.parent
    there = there.resolve()
    return Place(there, file_system(there), shutil.disk_usage(there).free / 1e6)


def judge(ask: Ask, place: Place, mb_per_s: float) -> Line:
    """The line about one folder."""
    exists = Path(ask.folder).is_dir()
    what = (
        f"{place.folder} ({place.kind}) takes {{MB_per_s:.0f}} MB/s, {{GB_free:.3g}} GB free"
        f"{'' if exists else f'; {ask.folder} is not there yet'}"
    )
    seen: dict[str, float | str] = {"MB_per_s": mb_per_s, "GB_free": place.free_mb / 1000}
    if place.kind in _MEMORY or any(place.folder.is_relative_to(local) for local in _NODE_LOCAL):
        why = "in memory" if place.kind in _MEMORY else "this host's own and cleared now and then"
        remedy = "runs need a folder that every node sees and that stays: --folder (and `run.dir`) on a shared disk"
        return Line("folder", "warn", f"{what}: it is {why}", remedy, seen)
    if place.free_mb < 10 * ask.checkpoint_mb:
        what = f"{what}: not ten checkpoints of {ask.checkpoint_mb:.0f} MB"
        return Line("folder", "warn", what, "make room, or name another by --folder", seen)
    if mb_per_s < _SLOW_MB_S:
        remedy = "ask for a faster disk (scratch), or write checkpoints less often: checkpoint.minutes=60"
        return Line("folder", "warn", f"{what}: slow", remedy, seen)
    return Line("folder", "ok", what, seen=seen)


def write_speed(folder: Path, megabytes: int) -> float:
    """MB/s of a file written in chunks and made durable by fsync, cut short after 15 s; the file is gone afterwards.

    Raises:
        OSError: it cannot be written.
    """
    path = folder / f".mmsada-doctor-{uuid.uuid4().hex[:12]}"
    chunk = os.urandom(_CHUNK_MB * 1_000_000)
    written, begin = 0, time.perf_counter()
    try:
        with path.open("wb", buffering=0) as file:
            while written < megabytes and time.perf_counter() - begin < _LONGEST_S:
                file.write(chunk)
                written += _CHUNK_MB
            os.fsync(file.fileno())
        return written / (time.perf_counter() - begin)
    finally:
        path.unlink(missing_ok=True)


def file_system(folder: Path, mounts: Iterable[str] | None = None) -> str:
    """Kind of the file system of an absolute folder, from lines as in /proc/self/mountinfo."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines() if mounts is None else mounts
    best, kind = -1, "unknown"
    for line in lines:
        before, _, after = line.partition(" - ")
        point = Path(re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), before.split()[4]))
        if folder.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), after.split()[0]
    return kind
