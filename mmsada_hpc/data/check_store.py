"""A prepared store as input of `check-data`: its files, its index against its segments, and every frame decoded."""

import functools
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from mmsada_hpc.data.check_jobs import Look, Part
from mmsada_hpc.data.coverage import Coverage, find_gaps, whole_needs, window_needs
from mmsada_hpc.data.jpeg_check import find_fault
from mmsada_hpc.data.manifest import STREAMS, Stream, read_manifest
from mmsada_hpc.data.problems import DAMAGED, MISSING, SIZE, UNREADABLE, Problem, merged
from mmsada_hpc.data.store import Store, size_fault
from mmsada_hpc.data.tables import FRAMES_PER_NUMBER
from mmsada_hpc.errors import UserError

_COMPONENTS = {"rgb": 3, "flow": 1}
_READ = 64  # frame numbers a read


@functools.lru_cache(maxsize=1)
def _opened(folder: Path) -> Store:
    return Store.open_unchecked(folder)


@dataclass(frozen=True)
class StoreVideo:
    """One video of a store; picklable, as its methods run in worker processes."""

    folder: Path
    number: int
    name: str

    def look(self) -> Look:
        """Compare the index with itself and with the segments, without reading a frame."""
        store = _opened(self.folder)
        manifest, segments = store.manifest, store.segments
        have = Coverage(self.name, {stream: store.numbers(stream, self.number) for stream in STREAMS}, self._file)
        problems = [
            Problem(MISSING, self.name, stream, str(self.folder), f"the store has no {stream} frames of it")
            for stream in STREAMS
            if not len(have.present[stream])
        ]
        rows = np.flatnonzero(segments.video == self.number)
        spans = [(str(segments.uid[row]), int(segments.start[row]), int(segments.stop[row])) for row in rows]
        needs = list((window_needs if manifest.kind.startswith("epic") else whole_needs)(spans, manifest.flow))
        problems += find_gaps(have, needs, manifest.flow)
        counts: dict[str, int] = {stream: len(have.present[stream]) for stream in STREAMS}
        return Look(merged(problems), counts, (manifest.height, manifest.width))

    def decode(self, part: Part, size: tuple[int, int] | None, done: Callable[[int], None]) -> list[Problem]:
        """Read and decode the frames of one part."""
        stream: Stream = "rgb" if part.channel == "rgb" else "flow"
        store = _opened(self.folder)
        numbers = store.numbers(stream, self.number)[list(part.places)].tolist()
        if stream == "rgb" and store.manifest.rgb_form == "video":
            done(len(numbers))
            return self._decode_video(store, size) if 0 in part.places else []
        problems: list[Problem] = []
        together = _READ if isinstance(part.places, range) else 1  # a read covers all between its first and last
        for first in range(0, len(numbers), together):
            some = numbers[first : first + together]
            problems += self._decode_frames(store, stream, some, size)
            done(len(some))
        return merged(problems)

    def _decode_frames(
        self, store: Store, stream: Stream, numbers: Sequence[int], size: tuple[int, int] | None
    ) -> list[Problem]:
        try:
            payloads = store.read_frames(stream, self.number, numbers)
        except UserError as error:
            if len(numbers) == 1:
                return [Problem(DAMAGED, self.name, stream, self._file(stream, numbers[0]), str(error), numbers[0])]
            return [p for number in numbers for p in self._decode_frames(store, stream, [number], size)]
        problems = []
        for i, payload in enumerate(payloads):
            fault = find_fault(payload.tobytes(), size=size, components=_COMPONENTS[stream])
            if fault is not None:
                number, axis = numbers[i // FRAMES_PER_NUMBER[stream]], i % FRAMES_PER_NUMBER[stream]
                what = f"v: {fault[1]}" if axis else fault[1]
                problems.append(Problem(fault[0], self.name, stream, self._file(stream, number), what, number))
        return problems

    def _decode_video(self, store: Store, size: tuple[int, int] | None) -> list[Problem]:
        """RGB stored as one encoded video, decoded from end to end."""
        where, done, count = self._file("rgb", 1), 0, len(store.numbers("rgb", self.number))
        try:
            with av.open(io.BytesIO(store.read_video(self.number).tobytes()), "r") as container:
                for frame in container.decode(video=0):
                    done += 1
                    if size is not None and (frame.height, frame.width) != size:
                        what = f"{frame.height}x{frame.width}, should be {size[0]}x{size[1]}"
                        return [Problem(SIZE, self.name, "rgb", where, what, done)]
        except UserError as error:
            return [Problem(DAMAGED, self.name, "rgb", where, str(error), 1)]
        except (av.FFmpegError, OSError, ValueError) as error:
            return [Problem(UNREADABLE, self.name, "rgb", where, f"cannot be decoded ({error})", done + 1)]
        if done < count:
            return [Problem(UNREADABLE, self.name, "rgb", where, f"ends after {done} of {count} frames", done + 1)]
        return []

    def _file(self, stream: Stream, number: int) -> str:
        return f"{self.folder}/{_opened(self.folder).describe(stream, self.number, number)}"


def store_videos(folder: Path) -> tuple[list[StoreVideo], list[Problem]]:
    """The videos of a store, and its files that are missing or of the wrong size.

    UserError when it is no store, or its tables are so damaged that nothing can be said about its videos.
    """
    folder = folder.resolve()
    _opened.cache_clear()
    manifest = read_manifest(folder)
    for entry in manifest.tables:
        fault = size_fault(folder, entry)
        if fault:
            raise UserError(f"{folder / entry.file}: {fault}")
    faults = [(str(folder / entry.file), size_fault(folder, entry)) for entry in manifest.shards]
    problems = [Problem(DAMAGED, "", "", file, fault) for file, fault in faults if fault]
    videos = _opened(folder).videos
    return [StoreVideo(folder, number, name) for number, name in enumerate(videos)], problems
