"""Raw EPIC-KITCHENS folders and tars as input of `check-data`: the same listing as `prepare`, every fault listed."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmsada_hpc.data.check_jobs import Look, Part
from mmsada_hpc.data.coverage import Coverage, find_gaps, window_needs
from mmsada_hpc.data.epic import EpicSource, epic_sources
from mmsada_hpc.data.epic_files import AXES, Listing, Piece
from mmsada_hpc.data.jpeg import read_header
from mmsada_hpc.data.jpeg_check import find_fault
from mmsada_hpc.data.manifest import STREAMS, FlowConvention, Stream
from mmsada_hpc.data.problems import MISSING, TWICE, UNREADABLE, Problem, merged
from mmsada_hpc.data.segments import SegmentRow
from mmsada_hpc.errors import UserError

CHANNELS: dict[str, tuple[Stream, str, int]] = {
    "rgb": ("rgb", "", 3),
    "flow u": ("flow", "u", 1),
    "flow v": ("flow", "v", 1),
}
_TRIED_FOR_SIZE = 5


@dataclass(frozen=True)
class EpicVideo:
    """One raw video; picklable, as its methods run in worker processes."""

    source: EpicSource

    @property
    def name(self) -> str:
        return self.source.name

    def look(self) -> Look:
        """List both streams and compare them with each other and with the segments, without decoding."""
        problems: list[Problem] = []
        listings = {stream: self._listing(stream, problems) for stream in STREAMS}
        problems += self._unpaired(listings["flow"])
        numbers = {stream: _numbers(listings[stream]) for stream in STREAMS}
        have = Coverage(self.name, numbers, functools.partial(self._file, listings))
        needs = list(window_needs(self.source.spans, self.source.convention))
        problems += find_gaps(have, needs, self.source.convention)
        counts = {name: len(listings[stream][axis]) for name, (stream, axis, _) in CHANNELS.items()}
        return Look(merged(problems), counts, _size(listings["rgb"]))

    def decode(self, part: Part, size: tuple[int, int] | None, done: Callable[[int], None]) -> list[Problem]:
        """Read and decode the frames of one part, counted in the order of their numbers."""
        stream, axis, components = CHANNELS[part.channel]
        frames = self._listing(stream, [])[axis]
        order = sorted(frames)
        problems = []
        for number in (order[i] for i in part.places if i < len(order)):
            fault = _read_fault(frames[number], size, components)
            done(1)
            if fault is not None:
                where = _where(frames[number], part.channel, number)
                problems.append(Problem(fault[0], self.name, part.channel, where, fault[1], number))
        return merged(problems)

    def _listing(self, stream: Stream, problems: list[Problem]) -> Listing:
        try:
            return self.source.list_frames(stream)
        except (UserError, OSError) as error:
            problems.append(Problem(MISSING, self.name, stream, self._place(stream), str(error)))
            return {axis: {} for axis in AXES[stream]}

    def _place(self, stream: Stream) -> str:
        place = self.source.rgb if stream == "rgb" else self.source.flow
        return str(place or self.source.root)

    def _unpaired(self, flow: Listing) -> list[Problem]:
        """Flow frames of which only u or only v is there."""
        found = []
        for axis, other in (("u", "v"), ("v", "u")):
            for number in sorted(flow[other].keys() - flow[axis].keys()) if flow[axis] else ():
                what = f"not there, but its {other} is"
                file = _sibling(flow[axis], number)
                found.append(Problem(MISSING, self.name, f"flow {axis}", file, what, number))
        return found

    def _file(self, listings: dict[Stream, Listing], stream: Stream, number: int) -> str:
        frames = listings[stream][AXES[stream][0]]
        return _where(frames[number], stream, number) if number in frames else _sibling(frames, number)


def epic_videos(
    root: Path, segments: Sequence[SegmentRow], convention: FlowConvention
) -> tuple[list[EpicVideo], list[Problem]]:
    """The videos that segments name, and the frames that are there twice."""
    clashes: list[Problem] = []
    sources = epic_sources(
        root, segments, convention, on_clash=lambda what: clashes.append(Problem(TWICE, "", "", str(root), what))
    )
    return [EpicVideo(source) for source in sources], clashes


def _numbers(listing: Listing) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """Frame numbers of which at least one axis is there."""
    return np.array(sorted(set().union(*listing.values())), np.int64)


def _size(rgb: Listing) -> tuple[int, int] | None:
    """Height and width of the first RGB frame whose header can be read."""
    for number in sorted(rgb[""])[:_TRIED_FOR_SIZE]:
        try:
            header = read_header(rgb[""][number].read())
        except (OSError, ValueError):
            continue
        return header.height, header.width
    return None


def _read_fault(piece: Piece, size: tuple[int, int] | None, components: int) -> tuple[str, str] | None:
    try:
        payload = piece.read()
    except OSError as error:
        return UNREADABLE, f"cannot be read ({error.strerror})"
    return find_fault(payload, size=size, components=components)


def _where(piece: Piece, channel: str, number: int) -> str:
    return piece.path if piece.length < 0 else f"{piece.path}, {channel} frame {number}"


def _sibling(frames: dict[int, Piece], number: int) -> str:
    """Where an absent frame would be: a file beside the others, or the tar they are in."""
    piece = frames[min(frames)]
    if piece.length >= 0:
        return piece.path
    name = Path(piece.path).name.replace(f"{min(frames):010d}", f"{number:010d}")
    return str(Path(piece.path).with_name(name))
