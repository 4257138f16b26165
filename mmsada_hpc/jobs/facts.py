"""What the files of a run say, read without torch and without its large files."""

import os
import re
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mmsada_hpc.cluster.heartbeat import Beat, read_beats
from mmsada_hpc.cluster.job_record import CANCELLED_FILE, JobRecord, read_jobs
from mmsada_hpc.jobs.find import CONFIG_FILE, Found
from mmsada_hpc.jobs.tail import Recent, read_recent
from mmsada_hpc.observe.record import read_json, read_record, read_yaml
from mmsada_hpc.observe.runs import RESULT_FILE
from mmsada_hpc.observe.screen import log_path

Row = dict[str, Any]
_READERS = 16
# A beat may be late (a busy file server, clocks of hosts that differ) without meaning anything.
_BEATS, _LEAST_SILENCE_S, _BEAT_S = 10, 60.0, 5.0
_SLURM_START = re.compile(r"(\d+(?:_\d+)?)\.\d+(?:-|$)")
_CHECKPOINT = re.compile(r"stage(\d+)-step(\d{8,})")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """One run folder at one moment."""

    path: Path
    name: str
    config: Row
    jobs: tuple[JobRecord, ...]
    starts: tuple[Row, ...]
    """run.json."""
    beats: tuple[Beat, ...]
    """Of the newest start that left any."""
    is_cancelled: bool
    result: Row | None
    recent: Recent
    checkpoints: tuple[str, ...]
    """Names of the finished ones, oldest first."""

    @property
    def start(self) -> str:
        """Name of the newest start; "" where none began."""
        return self.beats[0].start if self.beats else str((self.starts or ({},))[-1].get("start", ""))

    @property
    def job_ids(self) -> tuple[str, ...]:
        """The jobs of the run, oldest first; also one that a person queued by hand and that has begun."""
        ids = [job.job_id for job in self.jobs]
        own = [job_of(str(start.get("start", ""))) for start in self.starts[-1:]] + [job_of(self.start)]
        return tuple(dict.fromkeys([*ids, *(job for job in own if job)]))

    @property
    def last_begin(self) -> float:
        """Unix seconds of the newest start in run.json, which is written to the second; 0 where there is none."""
        text = str(self.starts[-1].get("started", "")) if self.starts else ""
        try:
            return datetime.strptime(text, "%Y-%m-%d %H:%M:%S %z").timestamp()
        except ValueError:
            return 0.0

    @property
    def is_local(self) -> bool:
        """Whether the run was last started outside Slurm."""
        if not self.job_ids:
            return True
        submitted = max((job.submitted for job in self.jobs), default=0.0)
        return job_of(self.start) is None and self.start != "" and self.last_begin + 1 > submitted

    @property
    def silence_s(self) -> float:
        """So long without a beat, and a rank counts as silent."""
        watch = self.config.get("watch")
        beat_s = watch.get("heartbeat_seconds", _BEAT_S) if isinstance(watch, dict) else _BEAT_S
        return max(_LEAST_SILENCE_S, _BEATS * float(beat_s))

    def silent(self, now: float) -> list[Beat]:
        """Ranks that did not say that they end, and have not been heard of for long."""
        return [beat for beat in self.beats if not beat.has_ended and not self._is_alive(beat, now)]

    def alive(self, now: float) -> list[Beat]:
        """Ranks that work, as far as can be told."""
        return [beat for beat in self.beats if not beat.has_ended and self._is_alive(beat, now)]

    def _is_alive(self, beat: Beat, now: float) -> bool:
        here = is_rank_of(beat, self.path) if beat.host == socket.gethostname() else None
        return abs(now - beat.time) < self.silence_s if here is None else here

    @property
    def steps(self) -> tuple[int, int]:
        """Updates of the two stages; 0 where the config does not say."""
        train = self.config.get("train")
        stages = [train.get(f"stage{n}") if isinstance(train, dict) else None for n in (1, 2)]
        first, second = (int(stage.get("steps", 0)) if isinstance(stage, dict) else 0 for stage in stages)
        return first, second


def job_of(start: str) -> str | None:
    """The Slurm job of a start of a run, `123` of `123.1-4f0c`; None of a start outside Slurm."""
    match = _SLURM_START.match(start)
    return match[1] if match else None


def is_rank_of(beat: Beat, run_dir: Path) -> bool | None:
    """Whether the process of a beat of this host still is that rank, which has its log open as its output; None where
    it is another user's, who alone may look.
    """
    log = str(log_path(run_dir.resolve(), beat.rank))
    try:
        return log in (os.readlink(f"/proc/{beat.pid}/fd/1"), os.readlink(f"/proc/{beat.pid}/fd/2"))
    except PermissionError:
        return None
    except OSError:
        return False


def read_facts(run: Found) -> Facts:
    """All that the table of runs needs of one."""
    beats = read_beats(run.path)
    newest = max(beats, key=lambda beat: beat.time).start if beats else ""
    return Facts(
        path=run.path,
        name=run.name,
        config=read_yaml(run.path / CONFIG_FILE),
        jobs=tuple(read_jobs(run.path)),
        starts=tuple(read_record(run.path)),
        beats=tuple(beat for beat in beats if beat.start == newest),
        is_cancelled=(run.path / CANCELLED_FILE).exists(),
        result=read_json(run.path / RESULT_FILE) or None,
        recent=read_recent(run.path),
        checkpoints=_checkpoints(run.path / "checkpoints"),
    )


def read_all(runs: Sequence[Found]) -> list[Facts]:
    """Several at once: on a shared file system the waiting is what takes time."""
    with ThreadPoolExecutor(min(_READERS, max(1, len(runs)))) as pool:
        return list(pool.map(read_facts, runs))


def _checkpoints(folder: Path) -> tuple[str, ...]:
    try:
        return tuple(sorted(name for name in os.listdir(folder) if _CHECKPOINT.fullmatch(name)))
    except OSError:
        return ()


def checkpoint_words(name: str) -> str:
    """`step 25 of stage 1` of `stage1-step00000025`."""
    match = _CHECKPOINT.fullmatch(name)
    return f"step {int(match[2])} of stage {match[1]}" if match else name
