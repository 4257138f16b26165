"""Which frames the segments of a video need, and which of them are not there (spec 4.3, 4.4). Used by `prepare`, which
refuses the first, and by `check-data`, which lists all.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmsada_hpc.data.manifest import STREAMS, FlowConvention, Stream
from mmsada_hpc.data.problems import LENGTH, MISSING, PAST_END, Problem
from mmsada_hpc.data.windows import WindowRule

Span = tuple[str, int, int]  # uid, first and last RGB frame of a segment
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Need:
    """Frame numbers that one segment needs of each stream."""

    segment: str
    frames: Mapping[Stream, range]


@dataclass(frozen=True)
class Coverage:
    """The frame numbers of one video that are there, ascending, per stream; `file` says where a frame is, or would
    be.
    """

    video: str
    present: Mapping[Stream, Numbers]
    file: Callable[[Stream, int], str]


def window_needs(spans: Sequence[Span], convention: FlowConvention) -> Iterator[Need]:
    """What the released windows (16 frames at step 2) of EPIC segments can reach."""
    rule = WindowRule(num_frames=16, rgb_step=2, flow_stride=convention.stride)
    for uid, start, stop in spans:
        low, high = rule.bounds(np.array([start]), np.array([stop]))
        first, last = int(rule.rgb_frames(int(low[0]))[0]), int(rule.rgb_frames(int(high[0]))[-1])
        yield _need(uid, start, stop, first, last, convention.stride)


def whole_needs(spans: Sequence[Span], convention: FlowConvention) -> Iterator[Need]:
    """Every frame of the segments, for videos whose windows are the run's own."""
    for uid, start, stop in spans:
        yield _need(uid, start, stop, start, stop, convention.stride)


def _need(uid: str, start: int, stop: int, first: int, last: int, stride: int) -> Need:
    flow = range(max(1, first // stride), last // stride + 1)
    return Need(f"segment {uid} (frames {start} to {stop})", {"rgb": range(first, last + 1), "flow": flow})


def find_gaps(have: Coverage, needs: Sequence[Need], convention: FlowConvention) -> list[Problem]:
    """Streams of different length, segments that reach past the frames there are, and holes that a segment needs."""
    problems = list(_lengths(have, convention)) if all(len(have.present[s]) for s in STREAMS) else []
    for stream in STREAMS:
        if len(have.present[stream]):
            problems += [*_past_the_end(have, stream, needs), *_holes(have, stream, needs)]
    return problems


def _lengths(have: Coverage, convention: FlowConvention) -> Iterator[Problem]:
    frames, files = (int(have.present[stream][-1]) for stream in STREAMS)
    if files < convention.count(frames):
        what = f"flow ends at file {files}; the {frames} RGB frames need at least {convention.count(frames)}"
        yield Problem(LENGTH, have.video, "flow", have.file("flow", files), what, files)
    if files > -(-frames // convention.stride):
        made_from = files * convention.stride
        what = f"RGB ends at frame {frames}, but there are {files} flow files, made from about {made_from} frames"
        yield Problem(LENGTH, have.video, "rgb", have.file("rgb", frames), what, frames)


def _past_the_end(have: Coverage, stream: Stream, needs: Sequence[Need]) -> Iterator[Problem]:
    first, last = int(have.present[stream][0]), int(have.present[stream][-1])
    for need in needs:
        needed = need.frames[stream]
        if needed[-1] > last or needed[0] < first:
            what = f"{need.segment} needs {stream} frames {needed[0]} to {needed[-1]}, there are {first} to {last}"
            at = last if needed[-1] > last else first
            yield Problem(PAST_END, have.video, stream, have.file(stream, at), what, at)


def _holes(have: Coverage, stream: Stream, needs: Sequence[Need]) -> Iterator[Problem]:
    present = have.present[stream]
    first, last = int(present[0]), int(present[-1])
    if len(present) == last - first + 1:
        return
    absent = np.setdiff1d(np.arange(first, last + 1), present)
    for number in absent.tolist():
        who = [need.segment for need in needs if number in need.frames[stream]]
        if who:
            more = f" and {len(who) - 1} more" if len(who) > 1 else ""
            what = f"not there; needed by {who[0]}{more}"
            yield Problem(MISSING, have.video, stream, have.file(stream, number), what, number)
