"""The work of `check-data`, whatever is checked: a look at every video, then its frames decoded part by part in worker
processes.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mmsada_hpc.data.pool import advance, run
from mmsada_hpc.data.problems import Problem
from mmsada_hpc.data.progress import Progress

# Long enough that listing a folder again costs little beside decoding it, short enough to share out one long video.
_PART = 10_000


@dataclass(frozen=True)
class Part:
    """Frames of one video to decode: `places` count the frames that are there, in order, from 0. A channel is what
    lies together: "rgb", or flow's u, v or both.
    """

    channel: str
    places: Sequence[int]


@dataclass(frozen=True)
class Look:
    """What a look at a video without decoding gave: its problems, files per channel, and height and width of its
    frames (None when no frame says).
    """

    problems: list[Problem]
    counts: dict[str, int]
    size: tuple[int, int] | None


class Video(Protocol):
    """One video to check. Picklable; both methods run in worker processes and list problems instead of raising."""

    @property
    def name(self) -> str:
        """Name of the video."""

    def look(self) -> Look:
        """List and compare, without decoding."""

    def decode(self, part: Part, size: tuple[int, int] | None, done: Callable[[int], None]) -> list[Problem]:
        """Decode the frames of one part; `done` is told how many more were."""


@dataclass(frozen=True)
class Checked:
    """Everything that was found, and how much was looked at."""

    problems: list[Problem]
    videos: int
    counts: dict[str, int]
    decoded: int


@dataclass(frozen=True)
class _Job:
    video: Video
    part: Part
    size: tuple[int, int] | None


def check_videos(videos: Sequence[Video], *, size: tuple[int, int] | None, sample: int, workers: int) -> Checked:
    """Look at every video and decode its frames.

    Args:
        size: wanted height and width; None = what most of the videos have.
        sample: frames to decode per video and channel, evenly spread, the first and the last among them; 0 = all.
    """
    with Progress("looking", total=len(videos), unit="video") as progress:
        looks = run(_look, videos, workers=workers, progress=progress)
    sizes = Counter(look.size for look in looks if look.size is not None)
    wanted = size or (sizes.most_common(1)[0][0] if sizes else None)
    jobs = [
        _Job(video, part, wanted)
        for video, look in zip(videos, looks, strict=True)
        for channel, count in look.counts.items()
        for part in _parts(channel, count, sample)
    ]
    decoded = sum(len(job.part.places) for job in jobs)
    with Progress("decoding", total=decoded, unit="frame") as progress:
        faults = run(_decode, jobs, workers=workers, progress=progress)
    problems = [*(p for look in looks for p in look.problems), *(p for found in faults for p in found)]
    order = {video.name: i for i, video in enumerate(videos)}
    counts = sum((Counter(look.counts) for look in looks), Counter[str]())
    return Checked(sorted(problems, key=lambda p: order.get(p.video, -1)), len(videos), dict(counts), decoded)


def _look(video: Video) -> Look:
    look = video.look()
    advance(1)
    return look


def _decode(job: _Job) -> list[Problem]:
    return job.video.decode(job.part, job.size, advance)


def _parts(channel: str, count: int, sample: int) -> list[Part]:
    if sample and sample < count:
        return [Part(channel, tuple(sorted({int(i) for i in np.linspace(0, count - 1, sample)})))]
    return [Part(channel, range(first, min(first + _PART, count))) for first in range(0, count, _PART)]
