"""Build a store from sources: survey, plan, pack, then the tables, and `store.json` last."""

import hashlib
import io
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

import mmsada_hpc
from mmsada_hpc.data.manifest import MANIFEST, STREAMS, FileEntry, FlowConvention, StoreManifest, Stream
from mmsada_hpc.data.outfolder import begin, canonical, enter, locked
from mmsada_hpc.data.packing import plan_jobs, run_jobs, survey_all
from mmsada_hpc.data.progress import Progress
from mmsada_hpc.data.records import BUILD, ShardRecord, read_record
from mmsada_hpc.data.segments import WHOLE_VIDEO, SegmentRow
from mmsada_hpc.data.shards import writing
from mmsada_hpc.data.source import BadVideo, PackedVideo, Source, Survey
from mmsada_hpc.data.tables import (
    FRAMES_PER_NUMBER,
    INDEX_DTYPE,
    SEGMENT_COLUMNS,
    SEGMENTS,
    VIDEO_COLUMNS,
    VIDEOS,
    csv_bytes,
    index_file,
)
from mmsada_hpc.durable import write_atomically
from mmsada_hpc.errors import UserError


@dataclass(frozen=True)
class StorePlan:
    """What is to become a store. `options` holds every setting that changes its contents; `segments` may end with
    WHOLE_VIDEO.
    """

    kind: str
    classes: tuple[str, ...]
    sources: tuple[Source, ...]
    segments: tuple[SegmentRow, ...]
    flow: FlowConvention
    rgb_form: str
    options: dict[str, Any]
    command: str


@dataclass(frozen=True)
class Built:
    """The store and what making it took; `already` when it was complete before."""

    path: Path
    manifest: StoreManifest
    seconds: float
    shards_kept: int = 0
    already: bool = False


@dataclass(frozen=True)
class Surveyed:
    """The sources that can be used, with their surveys, and those that cannot."""

    sources: tuple[Source, ...]
    surveys: tuple[Survey, ...]
    skipped: tuple[dict[str, str], ...]


def survey(plan: StorePlan, *, workers: int, skip_bad: bool) -> Surveyed:
    """Look at every source before any is packed; UserError for one that cannot be used (unless `skip_bad`) or for
    frame rates or sizes that differ.
    """
    with Progress("looking", total=len(plan.sources), unit="video") as progress:
        surveys = survey_all(plan.sources, workers=workers, progress=progress)
    bad = [(source, one) for source, one in zip(plan.sources, surveys, strict=True) if one.problem]
    if bad and not skip_bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise BadVideo(f"{bad[0][1].problem}{more}; mend it, or leave such videos out with --skip-bad")
    good = [(source, one) for source, one in zip(plan.sources, surveys, strict=True) if not one.problem]
    if not good:
        raise UserError("no usable video is left to pack")
    _check_alike(good)
    skipped = tuple({"item": source.name, "why": one.problem} for source, one in bad)
    return Surveyed(tuple(source for source, _ in good), tuple(one for _, one in good), skipped)


def _check_alike(good: Sequence[tuple[Source, Survey]]) -> None:
    source, first = good[0]
    for other, one in good[1:]:
        if abs(one.fps - first.fps) > 0.01 * first.fps:
            raise UserError(
                f"{other.name} has {one.fps:g} frames/s, {source.name} has {first.fps:g}: a store has one rate; "
                f"convert the videos to one rate first"
            )
        if (one.height, one.width) != (first.height, first.width):
            raise UserError(
                f"{other.name} has frames of {one.height}x{one.width}, {source.name} of "
                f"{first.height}x{first.width}: a store has one size"
            )


def build(
    plan: StorePlan, out: Path, *, workers: int, shard_bytes: int, skip_bad: bool = False, force: bool = False
) -> Built:
    """Make the store at `out`, or finish one that was interrupted, or find it already complete.

    UserError when `out` is something else, or a store made with other options or inputs (unless `force`, which starts
    anew).
    """
    begun = time.monotonic()
    found = survey(plan, workers=workers, skip_bad=skip_bad)
    inputs = _digest(plan, found)
    complete = enter(out, plan.options, inputs=inputs, force=force)
    if complete is not None:
        return Built(out, complete, time.monotonic() - begun, already=True)
    writing(out, lambda: begin(out, plan.options))
    with locked(out):
        manifest, kept = _pack(
            plan, found, out, inputs=inputs, workers=workers, shard_bytes=shard_bytes, skip_bad=skip_bad
        )
    return Built(out, manifest, time.monotonic() - begun, shards_kept=kept)


def _pack(
    plan: StorePlan, found: Surveyed, out: Path, *, inputs: str, workers: int, shard_bytes: int, skip_bad: bool
) -> tuple[StoreManifest, int]:
    """Make what is missing; returns the manifest and how many shard pairs were there already."""
    options = canonical(plan.options)
    jobs = plan_jobs(
        found.sources, found.surveys, folder=out, shard_bytes=shard_bytes, options=options, skip_bad=skip_bad
    )
    with Progress("packing", total=sum(one.frames for one in found.surveys), unit="frame") as progress:
        done = run_jobs(jobs, workers=workers, progress=progress)
    records = [read_record(out, job.number) for job in jobs]
    manifest = writing(out, lambda: _finish(plan, out, records, inputs=inputs, skipped=found.skipped))
    return manifest, sum(job.kept for job in done)


def _digest(plan: StorePlan, found: Surveyed) -> str:
    """Changes when any input video, segment or class does."""
    digest = hashlib.sha256(repr((plan.classes, plan.segments)).encode())
    for source, one in zip(found.sources, found.surveys, strict=True):
        digest.update(f"{source.name}\t{one.identity}\n".encode())
    return digest.hexdigest()


def _finish(
    plan: StorePlan, out: Path, records: Sequence[ShardRecord], *, inputs: str, skipped: tuple[dict[str, str], ...]
) -> StoreManifest:
    shards = tuple(entry for record in records for entry in record.shards)
    placed = [
        (video, {entry.stream: entry.file for entry in record.shards}) for record in records for video in record.videos
    ]
    if not placed:
        raise UserError("no usable video is left to pack")
    segments = _resolve(plan, {video.name: video for video, _ in placed})
    tables = tuple(_write_table(out, name, payload) for name, payload in _tables(plan, placed, segments).items())
    for path in {*out.glob("rgb-*.tar*"), *out.glob("flow-*.tar*")} - {out / entry.file for entry in shards}:
        path.unlink()
    skipped += tuple(item for record in records for item in record.skipped)
    manifest = _manifest(
        plan, [video for video, _ in placed], shards=shards, tables=tables, inputs=inputs, skipped=skipped
    )
    write_atomically(out / MANIFEST, manifest.to_json().encode())
    shutil.rmtree(out / BUILD, ignore_errors=True)
    return manifest


def _resolve(plan: StorePlan, videos: dict[str, PackedVideo]) -> list[SegmentRow]:
    """The segments whose video was packed, each with its real end: the last frame for which flow exists."""
    rows = []
    for row in plan.segments:
        if row.video in videos:
            video = videos[row.video]
            end = min(video.frames, plan.flow.last_frame(len(video.flow_rows) // 2))
            rows.append(
                row
                if row.stop != WHOLE_VIDEO
                else SegmentRow(row.uid, row.domain, row.split, row.video, row.start, end, row.label)
            )
    return rows


def _tables(
    plan: StorePlan, placed: Sequence[tuple[PackedVideo, dict[str, str]]], segments: Sequence[SegmentRow]
) -> dict[str, bytes]:
    """File name -> contents of the two indices and the two csv tables."""
    tables, video_rows = dict[str, bytes](), list[tuple[object, ...]]()
    for stream, per in FRAMES_PER_NUMBER.items():
        parts, row = [np.zeros(0, INDEX_DTYPE)], 0
        for video, files in placed:
            part, first = (video.rgb_rows, video.rgb_first) if stream == "rgb" else (video.flow_rows, video.flow_first)
            count = video.frames if stream == "rgb" else len(part) // per
            video_rows.append((video.name, stream, files[stream], row, first, count))
            parts.append(part)
            row += len(part)
        buffer = io.BytesIO()
        np.save(buffer, np.concatenate(parts), allow_pickle=False)
        tables[index_file(stream)] = buffer.getvalue()
    tables[VIDEOS] = csv_bytes(VIDEO_COLUMNS, video_rows)
    tables[SEGMENTS] = csv_bytes(
        SEGMENT_COLUMNS, [(s.uid, s.domain, s.split, s.video, s.start, s.stop, s.label) for s in segments]
    )
    return tables


def _write_table(out: Path, name: str, payload: bytes) -> FileEntry:
    writing(out / name, lambda: write_atomically(out / name, payload))
    return FileEntry(name, len(payload), hashlib.sha256(payload).hexdigest())


def _manifest(plan: StorePlan, videos: Sequence[PackedVideo], **found: Any) -> StoreManifest:
    return StoreManifest(
        kind=plan.kind,
        classes=plan.classes,
        domains=tuple(sorted({row.domain for row in plan.segments})),
        fps=round(videos[0].fps, 4),
        height=videos[0].height,
        width=videos[0].width,
        rgb_form=plan.rgb_form,
        flow=plan.flow,
        frames={stream: sum(_present(video, stream, plan.rgb_form) for video in videos) for stream in STREAMS},
        command=plan.command,
        options=plan.options,
        versions=_versions(),
        **found,
    )


def _present(video: PackedVideo, stream: Stream, rgb_form: str) -> int:
    """Frames of one video that are really there (u and v apart)."""
    if stream == "rgb" and rgb_form == "video":
        return video.frames
    return int(np.count_nonzero((video.rgb_rows if stream == "rgb" else video.flow_rows)["length"]))


def _versions() -> dict[str, str]:
    return {
        "mmsada_hpc": mmsada_hpc.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "av": av.__version__,
    }
