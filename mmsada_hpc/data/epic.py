"""EPIC-KITCHENS frames as a source: packed byte for byte, after checks that no window will run into a hole (spec 4.3,
4.4).
"""

import hashlib
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmsada_hpc.data.coverage import Span, window_needs
from mmsada_hpc.data.epic_files import AXES, Listing, Place, locate, refuse
from mmsada_hpc.data.jpeg import JpegHeader, read_header
from mmsada_hpc.data.manifest import FlowConvention, Stream
from mmsada_hpc.data.segments import SegmentRow
from mmsada_hpc.data.shards import NO_FRAME, Row, ShardWriter, as_rows
from mmsada_hpc.data.source import BadVideo, PackedVideo, Shards, Survey
from mmsada_hpc.data.tables import member_names
from mmsada_hpc.errors import UserError

FRAMES_PER_SECOND = 60.0
_COMPONENTS = {"rgb": 3, "flow": 1}
_EXPECTED = {
    "rgb": "rgb/P01/{v}/frame_0000000001.jpg, rgb/P01/{v}.tar or {v}_frame_0000000001.jpg",
    "flow": "flow/P01/{v}/u/frame_0000000001.jpg, flow/P01/{v}.tar or {v}_flow_u_0000000001.jpg",
}


@dataclass(frozen=True)
class EpicSource:
    """The RGB and flow frames of one video, and the (uid, start, stop) of the segments that need them."""

    name: str
    root: Path
    rgb: Place | None
    flow: Place | None
    spans: tuple[Span, ...]
    convention: FlowConvention

    def survey(self) -> Survey:
        """List every frame and check the counts against each other and against the segments."""
        try:
            rgb, flow = self.list_frames("rgb"), self.list_frames("flow")
            self._check(rgb, flow)
            header, rgb_bytes = self._first_header("rgb", rgb)
            _, flow_bytes = self._first_header("flow", flow)
        except (UserError, OSError) as error:
            return Survey(problem=str(error))
        frames, size = len(rgb[""]), len(rgb[""]) * rgb_bytes + 2 * len(flow["u"]) * flow_bytes
        return Survey(self._identity(rgb, flow), frames, size, FRAMES_PER_SECOND, header.height, header.width)

    def pack(self, shards: Shards) -> PackedVideo:
        """Copy every frame, checking that each is a whole JPEG of the one size."""
        rgb, flow = self.list_frames("rgb"), self.list_frames("flow")
        header, _ = self._first_header("rgb", rgb)
        rgb_rows = self._copy("rgb", rgb, shards.rgb, header, shards)
        flow_rows = self._copy("flow", flow, shards.flow, header, shards)
        return PackedVideo(
            self.name,
            header.height,
            header.width,
            FRAMES_PER_SECOND,
            len(rgb_rows),
            min(rgb[""]),
            min(flow["u"]),
            as_rows(rgb_rows),
            as_rows(flow_rows),
        )

    def list_frames(self, stream: Stream) -> Listing:
        """Every frame of a stream; BadVideo saying where was looked when there is none."""
        place = self.rgb if stream == "rgb" else self.flow
        if place is None:
            raise BadVideo(
                f"{self.root}: no {stream} frames of {self.name}; looked for {_EXPECTED[stream].format(v=self.name)}"
            )
        try:
            listing = place.list()
        except UserError as error:
            raise BadVideo(str(error)) from error
        counts = {axis: len(frames) for axis, frames in listing.items()}
        if not all(counts.values()):
            raise BadVideo(
                f"{place}: no {stream} frames of {self.name}"
                + (f" (u {counts['u']}, v {counts['v']})" if stream == "flow" else "")
            )
        return listing

    def _check(self, rgb: Listing, flow: Listing) -> None:
        if flow["u"].keys() != flow["v"].keys():
            odd = min(flow["u"].keys() ^ flow["v"].keys())
            raise BadVideo(
                f"{self.flow}: {len(flow['u'])} u files and {len(flow['v'])} v files of {self.name}; frame {odd} "
                f"has only one of them"
            )
        frames, files = max(rgb[""]), max(flow["u"])
        if files < self.convention.count(frames):
            raise BadVideo(
                f"{self.flow}: flow of {self.name} is shorter than its RGB: {frames} RGB frames need at least "
                f"{self.convention.count(frames)} flow files, found {files}"
            )
        self._check_spans(rgb, flow)

    def _check_spans(self, rgb: Listing, flow: Listing) -> None:
        for need in window_needs(self.spans, self.convention):
            self._check_span(need.segment, rgb[""], need.frames["rgb"], f"{self.rgb}: RGB")
            self._check_span(need.segment, flow["u"], need.frames["flow"], f"{self.flow}: flow")

    def _check_span(self, segment: str, present: Container[int], needed: range, place: str) -> None:
        absent = [number for number in needed if number not in present]
        if absent:
            there = len(needed) - len(absent)
            raise BadVideo(
                f"{place} of {self.name} ends early or has a hole: {segment} needs frames {needed[0]} to {needed[-1]}, "
                f"{len(needed)} in all, {there} are there; the first missing is {absent[0]}"
            )

    def _first_header(self, stream: Stream, listing: Listing) -> tuple[JpegHeader, int]:
        frames = listing[AXES[stream][0]]
        payload = frames[min(frames)].read()
        return self._header(payload, frames[min(frames)].path, stream), len(payload)

    def _header(self, payload: bytes, where: str, stream: str) -> JpegHeader:
        try:
            header = read_header(payload)
        except ValueError as error:
            raise BadVideo(f"{where}: {error}") from error
        if header.components != _COMPONENTS[stream]:
            raise BadVideo(
                f"{where}: {header.components} colour components, a frame of {stream} has {_COMPONENTS[stream]}"
            )
        return header

    def _copy(
        self, stream: Stream, listing: Listing, shard: ShardWriter, size: JpegHeader, shards: Shards
    ) -> list[Row]:
        axes = AXES[stream]
        numbers = listing[axes[0]]
        rows: list[Row] = []
        for number in range(min(numbers), max(numbers) + 1):
            if number in numbers:
                rows += [
                    shard.add(member, self._read(listing, axis, number, stream, size))
                    for axis, member in zip(axes, member_names(stream, self.name, number), strict=True)
                ]
                shards.advance(stream == "rgb")
            else:
                rows += [NO_FRAME] * len(axes)
        return rows

    def _read(self, listing: Listing, axis: str, number: int, stream: str, size: JpegHeader) -> bytes:
        piece = listing[axis][number]
        where = piece.path if piece.length < 0 else f"{piece.path}, {axis or stream} frame {number}"
        try:
            payload = piece.read()
        except OSError as error:
            raise BadVideo(f"{where}: cannot be read ({error.strerror})") from error
        header = self._header(payload, where, stream)
        if (header.height, header.width) != (size.height, size.width):
            raise BadVideo(
                f"{where}: {header.height}x{header.width}, the first RGB frame of {self.name} is "
                f"{size.height}x{size.width}: all frames must have one size"
            )
        return payload

    def _identity(self, rgb: Listing, flow: Listing) -> str:
        assert self.rgb is not None
        assert self.flow is not None
        numbers = repr((sorted(rgb[""]), sorted(flow["u"])))
        return f"{self.rgb.fingerprint()} {self.flow.fingerprint()} {hashlib.sha256(numbers.encode()).hexdigest()}"


def epic_sources(
    root: Path,
    segments: Sequence[SegmentRow],
    convention: FlowConvention,
    *,
    on_clash: Callable[[str], None] = refuse,
) -> tuple[EpicSource, ...]:
    """One source per video that a segment names, in the order of their names; `on_clash` as in `locate`."""
    spans: dict[str, list[Span]] = {}
    for row in segments:
        spans.setdefault(row.video, []).append((row.uid, row.start, row.stop))
    places = locate(root, frozenset(spans), on_clash=on_clash)
    return tuple(
        EpicSource(
            video, root, places.get(("rgb", video)), places.get(("flow", video)), tuple(spans[video]), convention
        )
        for video in sorted(spans)
    )
