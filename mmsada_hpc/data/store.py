"""Reading a store: segments, windows of encoded frames by one `preadv` each, and checks that name what is damaged."""

import hashlib
import os
import weakref
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsada_hpc.data.manifest import STREAMS, FileEntry, StoreManifest, Stream, read_manifest
from mmsada_hpc.data.tables import (
    FRAMES_PER_NUMBER,
    INDEX_DTYPE,
    VIDEO_COLUMNS,
    VIDEOS,
    Segments,
    StreamIndex,
    member_names,
    read_segments,
    read_stream_index,
    read_table,
)
from mmsada_hpc.errors import UserError

__all__ = ["Segments", "Store", "check_sizes", "sha256_file"]

Bytes1D = NDArray[np.uint8]


class Store:
    """A prepared store, open for reading. Safe to fork (reads carry their own offset) and to pickle (opens again by
    path).
    """

    def __init__(
        self,
        path: Path,
        manifest: StoreManifest,
        videos: tuple[str, ...],
        segments: Segments,
        streams: dict[Stream, StreamIndex],
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.videos = videos
        self.segments = segments
        self._streams = streams
        self._descriptors: dict[str, int] = {}
        self._finalizer = weakref.finalize(self, _close_all, self._descriptors)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Store":
        """Open the store at `path`: manifest, tables and the size of every file are checked, contents are not (see
        `verify`).
        """
        folder = Path(path).resolve()
        check_sizes(folder, read_manifest(folder))
        return cls.open_unchecked(folder)

    @classmethod
    def open_unchecked(cls, folder: Path) -> "Store":
        """`open` without a look at the shards, so that what is left of a damaged store can be read."""
        manifest = read_manifest(folder)
        table = read_table(folder / VIDEOS, VIDEO_COLUMNS)
        videos = tuple(dict.fromkeys(table["video"]))
        number = {name: i for i, name in enumerate(videos)}
        streams = {stream: read_stream_index(folder, table, number, stream) for stream in STREAMS}
        return cls(folder, manifest, videos, read_segments(folder, manifest, number), streams)

    def __reduce__(self) -> tuple[Callable[[Path], "Store"], tuple[Path]]:
        return (Store.open, (self.path,))

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, {len(self.segments)} segments, {len(self.videos)} videos)"

    def close(self) -> None:
        """Close the shards this process opened; a later read opens them again."""
        _close_all(self._descriptors)

    def select(self, domain: str, split: str) -> NDArray[np.int64]:
        """Rows of `segments` in `domain` and `split` ("all" = every split), ascending; UserError naming what exists
        when there are none.
        """
        segments, domains = self.segments, self.manifest.domains
        wanted = segments.domain == (domains.index(domain) if domain in domains else -1)
        if split != "all":
            wanted &= segments.split == split
        rows: NDArray[np.int64] = np.flatnonzero(wanted).astype(np.int64)
        if len(rows) == 0:
            exist = sorted({f"{domains[d]}/{s}" for d, s in zip(segments.domain, segments.split, strict=True)})
            raise UserError(
                f"{self.path}: no segments of domain {domain!r}, split {split!r}; the store has {', '.join(exist)}"
            )
        return rows

    def extent(self, stream: Stream, video: int) -> tuple[int, int]:
        """(first, last) frame number of `video` in `stream`; last < first when it has none."""
        index = self._streams[stream]
        first = int(index.first[video])
        return first, first + int(index.count[video]) - 1

    def extents(self, stream: Stream) -> NDArray[np.int64]:
        """`(2, videos)`: `extent` of every video."""
        index = self._streams[stream]
        return np.stack([index.first, index.first + index.count - 1])

    def numbers(self, stream: Stream, video: int) -> NDArray[np.int64]:
        """Frame numbers of `video` that are there, ascending (for a stream stored as video: all of them)."""
        index, per = self._streams[stream], FRAMES_PER_NUMBER[stream]
        first, count = int(index.first[video]), int(index.count[video])
        numbers = np.arange(first, first + count, dtype=np.int64)
        if stream == "rgb" and self.manifest.rgb_form == "video":
            return numbers
        row = int(index.row[video])
        lengths = index.rows["length"][row : row + per * count].reshape(count, per)
        return numbers[lengths.all(axis=1)]

    def read_frames(
        self, stream: Stream, video: int, frames: Sequence[int] | NDArray[np.integer[Any]]
    ) -> list[Bytes1D]:
        """Encoded JPEG bytes of `frames` (numbers of the stream) of one video, by one read over the range they cover.

        Returns 1-D uint8 arrays, views of one buffer: one per frame for "rgb", two per frame (u, v) for "flow".
        UserError naming video and frame when one is missing, or shard and member when its checksum is wrong.
        """
        if stream == "rgb" and self.manifest.rgb_form == "video":
            raise UserError(f"{self.path}: its RGB is stored as video, not as JPEG frames; use read_video")
        numbers = np.asarray(frames, np.int64)
        shard, rows = self._locate(stream, video, numbers)
        views = self._read_rows(shard, rows)
        for i, (row, view) in enumerate(zip(rows, views, strict=True)):
            if zlib.crc32(view.data) != int(row["crc"]):
                raise self._damaged(
                    stream, video, int(numbers[i // FRAMES_PER_NUMBER[stream]]), i % FRAMES_PER_NUMBER[stream]
                )
        return views

    def read_video(self, video: int) -> Bytes1D:
        """The encoded video file of `video`, 1-D uint8 (stores with rgb_form "video"); checked like `read_frames`."""
        if self.manifest.rgb_form != "video":
            raise UserError(f"{self.path}: its RGB is stored as JPEG frames, not as video; use read_frames")
        index = self._streams["rgb"]
        rows = index.rows[int(index.row[video])][None]
        views = self._read_rows(index.shard[video], rows)
        if zlib.crc32(views[0].data) != int(rows[0]["crc"]):
            raise self._damaged("rgb", video, 1, 0)
        return views[0]

    def describe(self, stream: Stream, video: int, frame: int) -> str:
        """Where a frame lies, for error messages: "rgb-00000.tar: P01_01/frame_0000000012.jpg"."""
        return f"{self._streams[stream].shard[video]}: {self._members(stream, video, frame)[0]}"

    def verify(self, progress: Callable[[str], None] | None = None) -> list[str]:
        """Recompute the sha256 of every file; returns one line per problem. `progress` is called with each file name
        before it is read.
        """
        problems = []
        for entry in (*self.manifest.tables, *self.manifest.shards):
            if progress is not None:
                progress(entry.file)
            if sha256_file(self.path / entry.file) != entry.sha256:
                problems.append(f"{self.path / entry.file}: damaged (sha256 differs from {self.path.name}/store.json)")
        return problems

    def _members(self, stream: Stream, video: int, frame: int) -> tuple[str, ...]:
        if stream == "rgb" and self.manifest.rgb_form == "video":
            return (f"{self.videos[video]}.mp4",)
        return member_names(stream, self.videos[video], frame)

    def _locate(self, stream: Stream, video: int, numbers: NDArray[np.int64]) -> tuple[str, NDArray[np.void]]:
        index, per = self._streams[stream], FRAMES_PER_NUMBER[stream]
        relative = numbers - index.first[video]
        inside = (relative >= 0) & (relative < index.count[video])
        where = index.row[video] + per * np.where(inside, relative, 0)
        rows = index.rows[(where[:, None] + np.arange(per)).reshape(-1)] if inside.all() else np.zeros(0, INDEX_DTYPE)
        if not inside.all() or not rows["length"].all():
            absent = numbers[~inside] if not inside.all() else numbers[np.flatnonzero(rows["length"] == 0) // per]
            first, last = self.extent(stream, video)
            raise UserError(
                f"{self.path}: video {self.videos[video]} has no {stream} frame {int(absent[0])} (it has {first} to "
                f"{last})"
            )
        return index.shard[video], rows

    def _read_rows(self, shard: str, rows: NDArray[np.void]) -> list[Bytes1D]:
        starts, lengths = rows["offset"].astype(np.int64), rows["length"].astype(np.int64)
        if len(rows) == 0:
            return []
        base = int(starts.min())
        buffer = np.empty(int((starts + lengths).max()) - base, np.uint8)
        self._fill(shard, buffer, base)
        return [buffer[s - base : s - base + n] for s, n in zip(starts.tolist(), lengths.tolist(), strict=True)]

    def _fill(self, shard: str, buffer: Bytes1D, offset: int) -> None:
        done = 0
        try:
            while done < len(buffer):
                got = os.preadv(self._descriptor(shard), [buffer.data[done:]], offset + done)
                if got == 0:
                    end = os.fstat(self._descriptor(shard)).st_size
                    raise UserError(
                        f"{self.path / shard}: truncated (ends at byte {end}); prepare the store again with --force"
                    )
                done += got
        except OSError as error:
            raise UserError(
                f"{self.path / shard}: cannot be read ({error.strerror}) at byte {offset + done}"
            ) from error

    def _descriptor(self, shard: str) -> int:
        if shard not in self._descriptors:
            self._descriptors[shard] = os.open(self.path / shard, os.O_RDONLY | os.O_CLOEXEC)
        return self._descriptors[shard]

    def _damaged(self, stream: Stream, video: int, frame: int, which: int) -> UserError:
        shard, member = self._streams[stream].shard[video], self._members(stream, video, frame)[which]
        return UserError(
            f"{self.path / shard}: {member} is damaged (checksum differs); run `mmsada inspect {self.path} "
            f"--verify`, or prepare again with --force"
        )


def sha256_file(path: Path) -> str:
    """sha256 of a file as hex; UserError naming the file when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _close_all(descriptors: dict[str, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)
    descriptors.clear()


def check_sizes(folder: Path, manifest: StoreManifest) -> None:
    """UserError naming the first file of the store that is missing or of another size than the manifest says."""
    for entry in (*manifest.tables, *manifest.shards):
        fault = size_fault(folder, entry)
        if fault:
            raise UserError(f"{folder / entry.file}: {fault}")


def size_fault(folder: Path, entry: FileEntry) -> str:
    """What is wrong with a file of a store, by its size alone; empty when nothing is."""
    try:
        found = (folder / entry.file).stat().st_size
    except OSError as error:
        return (
            f"cannot be opened ({error.strerror}), but store.json lists it; copy it back or prepare the store again "
            f"with --force"
        )
    if found != entry.bytes:
        return f"{found} bytes, store.json says {entry.bytes}; copy it again or prepare the store again with --force"
    return ""
