"""Heartbeats: a small file per rank in the run folder, written by a thread, for whoever asks who is alive and where.

The counter is what readers compare, over a time of their own clock: the clocks of hosts differ, and so may the times
that a shared file system puts on files.
"""

import json
import os
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mmsada_hpc.cluster.world import World

_FOLDER = "heartbeats"


@dataclass(frozen=True)
class Beat:
    """What one rank last said of itself."""

    rank: int
    host: str
    pid: int
    start: str
    """Of which start of the run (`job.restart`); files of earlier starts may still lie there."""
    count: int
    """Beats since the process began: it lives as long as this moves."""
    time: float
    """Unix seconds, by the clock of its host."""
    phase: str
    """start, step, agree, evaluate, save; end, failed, lost."""
    stage: int
    step: int
    """Updates done in that stage."""
    why: str = ""
    """Of one that failed."""

    @property
    def has_ended(self) -> bool:
        """Whether the rank itself said so; one that was killed could not."""
        return self.phase in ("end", "failed", "lost")


class Heart:
    """Beats for one rank until it is closed; the loop says where it is."""

    def __init__(self, run_dir: Path, world: World, *, start: str, seconds: float) -> None:
        self._path = beat_path(run_dir, world.rank)
        self.seconds = seconds
        """Between two beats."""
        self.now = Beat(world.rank, world.host, os.getpid(), start, 0, time.time(), "start", 0, 0)
        self.moved_at = time.monotonic()
        """When the rank last said something new, for a watchdog."""
        self._closed = threading.Event()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def say(self, phase: str, *, stage: int | None = None, step: int | None = None) -> None:
        """Where this rank is now; also the sign of life of its main thread."""
        self.now = replace(
            self.now,
            phase=phase,
            stage=self.now.stage if stage is None else stage,
            step=self.now.step if step is None else step,
        )
        self.moved_at = time.monotonic()

    def close(self, phase: str, *, why: str = "") -> None:
        """The last beat: `end`, `failed` with the reason, or `lost` for one that failed because others had."""
        self.say(phase)
        self.now = replace(self.now, why=why)
        self._closed.set()
        self._thread.join()

    def _beat(self) -> None:
        count = 0  # of this thread alone: `now` is the main thread's
        while True:
            ended, count = self._closed.is_set(), count + 1
            self._write(replace(self.now, count=count, time=round(time.time(), 3)))
            if ended:
                return
            self._closed.wait(self.seconds)

    def _write(self, beat: Beat) -> None:
        temporary = self._path.with_suffix(".tmp")
        try:
            temporary.write_text(json.dumps(asdict(beat)))
            os.replace(temporary, self._path)
        except OSError:
            return  # a full disk is told by the checkpoint that fails; a missed beat is what readers are made for


def beat_path(run_dir: Path, rank: int) -> Path:
    """Where a rank's beat lies."""
    return run_dir / _FOLDER / f"rank{rank:05d}.json"


def read_beats(run_dir: Path) -> list[Beat]:
    """The last beat of every rank, by rank; unreadable files are left out."""
    found = []
    for path in sorted((run_dir / _FOLDER).glob("rank*.json")):
        try:
            found.append(Beat(**json.loads(path.read_text())))
        except (OSError, ValueError, TypeError):
            continue
    return found


def still_beats(run_dir: Path, *, start: str, seconds: float) -> tuple[list[Beat], list[Beat]]:
    """Watch the ranks of one start for `seconds`; returns `(alive, silent)`. One that said that it ends is alive."""
    before = {beat.rank: beat for beat in read_beats(run_dir) if beat.start == start}
    time.sleep(seconds)
    after = {beat.rank: beat for beat in read_beats(run_dir) if beat.start == start}
    alive = [b for rank, b in after.items() if b.has_ended or rank not in before or b.count != before[rank].count]
    return alive, [beat for rank, beat in sorted(after.items()) if beat not in alive]
