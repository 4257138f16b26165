"""From sources to finished shards: a fixed plan, a pool of workers, and records that let a killed run go on where it
was.

The plan depends on the inputs and options alone, never on the number of workers. A shard counts as finished when its
record exists,
belongs to the same inputs and options, and its sha256 is right; everything else is made again.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmsada_hpc.data.manifest import FileEntry
from mmsada_hpc.data.pool import advance, run
from mmsada_hpc.data.progress import Progress
from mmsada_hpc.data.records import ShardRecord, is_finished, read_record, write_record
from mmsada_hpc.data.shards import ShardWriter
from mmsada_hpc.data.source import BadVideo, PackedVideo, Shards, Source, Survey

# A small store is still cut into about this many shards, so that every core has work and a kill loses little.
_SHARDS = 32
_MIN_SHARD_BYTES = 1 << 20


@dataclass(frozen=True)
class ShardJob:
    """The videos of shard pair `number`, in order."""

    number: int
    identity: str
    folder: Path
    sources: tuple[Source, ...]
    skip_bad: bool


@dataclass(frozen=True)
class JobDone:
    """What a worker reports: `kept` when the shard was already there from an earlier run."""

    number: int
    kept: bool


def survey_all(sources: Sequence[Source], *, workers: int, progress: Progress) -> list[Survey]:
    """A first look at every source, in their order."""
    return run(_survey, sources, workers=workers, progress=progress)


def _survey(source: Source) -> Survey:
    survey = source.survey()
    advance(1)
    return survey


def plan_jobs(
    sources: Sequence[Source],
    surveys: Sequence[Survey],
    *,
    folder: Path,
    shard_bytes: int,
    options: str,
    skip_bad: bool,
) -> list[ShardJob]:
    """Group whole videos, in order, into shards of about `shard_bytes` (fewer where that leaves under 32 shards)."""
    total = sum(survey.estimated_bytes for survey in surveys)
    target = min(shard_bytes, max(total // _SHARDS, _MIN_SHARD_BYTES))
    groups: list[list[int]] = []
    size = target
    for i, survey in enumerate(surveys):
        if size >= target:
            groups.append([])
            size = 0
        groups[-1].append(i)
        size += survey.estimated_bytes
    return [
        _job(n, [(sources[i], surveys[i]) for i in group], folder=folder, options=options, skip_bad=skip_bad)
        for n, group in enumerate(groups)
    ]


def _job(number: int, members: list[tuple[Source, Survey]], *, folder: Path, options: str, skip_bad: bool) -> ShardJob:
    text = "\n".join([options, *(f"{source.name}\t{survey.identity}" for source, survey in members)])
    return ShardJob(
        number, hashlib.sha256(text.encode()).hexdigest(), folder, tuple(source for source, _ in members), skip_bad
    )


def run_jobs(jobs: Sequence[ShardJob], *, workers: int, progress: Progress) -> list[JobDone]:
    """Make every shard that is not finished yet. On the first error no new shard is begun, those under way end, and
    the error is raised.
    """
    return run(run_job, jobs, workers=workers, progress=progress)


def run_job(job: ShardJob) -> JobDone:
    """Keep or make one shard pair and its record."""
    if is_finished(job.folder, job.number, job.identity, skip_bad=job.skip_bad):
        advance(sum(video.frames for video in read_record(job.folder, job.number).videos))
        return JobDone(job.number, kept=True)
    rgb, flow = (ShardWriter(job.folder, f"{stream}-{job.number:05d}.tar", stream) for stream in ("rgb", "flow"))
    try:
        videos, skipped = _pack_videos(job, Shards(rgb, flow, advance))
        entries: list[FileEntry] = [writer.finish() for writer in (rgb, flow)] if videos else []
    finally:
        rgb.abandon()
        flow.abandon()
    write_record(job.folder, ShardRecord(job.number, job.identity, entries, videos, skipped))
    return JobDone(job.number, kept=False)


def _pack_videos(job: ShardJob, shards: Shards) -> tuple[list[PackedVideo], list[dict[str, str]]]:
    videos: list[PackedVideo] = []
    skipped: list[dict[str, str]] = []
    for source in job.sources:
        marks = shards.rgb.mark(), shards.flow.mark()
        try:
            videos.append(source.pack(shards))
        except BadVideo as error:
            if not job.skip_bad:
                raise
            shards.rgb.rewind(marks[0])
            shards.flow.rewind(marks[1])
            skipped.append({"item": source.name, "why": str(error)})
    return videos, skipped
