"""`mmsada bench epic-store`: a store with the index of all of EPIC's D1-D3 over a few small, synthetic frames.

Segments, videos and the index are of true size (spec 4.1, 4.3), so opening, planning and everything else that grows
with them is exercised; a video's index rows all point at the same few JPEG files, so the store takes little room.
"""

import argparse
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from mmsada_hpc.data.build import Built, StorePlan, build
from mmsada_hpc.data.epic import FRAMES_PER_SECOND
from mmsada_hpc.data.epic_tables import EPIC_VERBS
from mmsada_hpc.data.manifest import FlowConvention
from mmsada_hpc.data.prepare import SEGMENTS_HELP, epic_segments
from mmsada_hpc.data.segments import SegmentRow
from mmsada_hpc.data.shards import Row, as_rows
from mmsada_hpc.data.source import PackedVideo, Shards, Survey
from mmsada_hpc.data.summary import describe_store
from mmsada_hpc.data.tables import member_names

HELP = "make a store with the index of all of EPIC's D1-D3 over a few synthetic frames"
SIZE = (256, 456)
_MARGIN = 32  # RGB frames after the last segment; a window may leave its segment by half its length
_DISTINCT = 8  # frames (and flow pairs) a video really has
_CONVENTION = FlowConvention("none: synthetic frames")


@dataclass(frozen=True)
class RepeatedFrames:
    """A video of `frames` RGB frames that are `_DISTINCT` files over and over."""

    name: str
    frames: int
    size: tuple[int, int]
    seed: int

    @property
    def flow_files(self) -> int:
        """Flow files of a video as released (spec 4.3)."""
        return -(-(self.frames - 3) // 2)

    def survey(self) -> Survey:
        """What a look would find."""
        return Survey(f"{self.frames} {self.size}", self.frames, 1 << 12, FRAMES_PER_SECOND, *self.size)

    def pack(self, shards: Shards) -> PackedVideo:
        """Write the few files; every index row points at one of them."""
        rgb = [shards.rgb.add(member, self._jpeg(k, 3)) for k in range(_DISTINCT) for member in self._members("rgb", k)]
        flow = [
            shards.flow.add(member, self._jpeg(k, 1)) for k in range(_DISTINCT) for member in self._members("flow", k)
        ]
        shards.advance(self.frames)
        rgb_rows, flow_rows = _repeated(rgb, self.frames), _repeated(flow, 2 * self.flow_files)
        return PackedVideo(self.name, *self.size, FRAMES_PER_SECOND, self.frames, 1, 1, rgb_rows, flow_rows)

    def _members(self, stream: str, k: int) -> tuple[str, ...]:
        return member_names(stream, self.name, k + 1)

    def _jpeg(self, k: int, channels: int) -> bytes:
        """A smooth pattern that moves with k: small as a file, and not the same in two frames or videos."""
        height, width = self.size
        phase = 0.7 * k + self.seed
        down = np.cos(np.arange(height) / 50 - phase).astype(np.float32)
        right = np.sin(np.arange(width)[:, None] / 40 + phase + np.arange(channels)).astype(np.float32)
        image = (128 + 60 * down[:, None, None] * right).astype(np.uint8)
        return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 60])[1].tobytes()


def _repeated(rows: list[Row], count: int) -> NDArray[np.void]:
    few = as_rows(rows)
    return few[np.arange(count) % len(few)]


def epic_store(
    out: Path, segments: tuple[SegmentRow, ...], *, size: tuple[int, int] = SIZE, command: str = "", force: bool = False
) -> Built:
    """Make the store; every video is as long as its last segment says, and a margin."""
    last: dict[str, int] = {}
    for row in segments:
        last[row.video] = max(last.get(row.video, 0), row.stop)
    sources = tuple(
        RepeatedFrames(name, stop + _MARGIN, size, seed) for seed, (name, stop) in enumerate(sorted(last.items()))
    )
    contents = {"kind": "epic-scale", "size": list(size), "flow": asdict(_CONVENTION)}
    plan = StorePlan("epic-scale", EPIC_VERBS, sources, segments, _CONVENTION, "jpeg", contents, command)
    return build(plan, out, workers=1, shard_bytes=1 << 30, force=force)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mmsada bench epic-store`."""
    parser.add_argument("--segments", nargs="+", required=True, metavar="DOMAIN/SPLIT=FILE", help=SEGMENTS_HELP)
    parser.add_argument("--out", type=Path, required=True, metavar="STORE", help="folder of the store")
    parser.add_argument("--force", action="store_true", help="make an existing store anew")


def run(args: argparse.Namespace) -> int:
    """Make the store and say what it holds."""
    command = shlex.join(["mmsada", *sys.argv[1:]])
    print(describe_store(epic_store(args.out, epic_segments(args.segments), command=command, force=args.force)))
    print("  synthetic: the tables are EPIC's, the frames are a few patterns, repeated")
    return 0
