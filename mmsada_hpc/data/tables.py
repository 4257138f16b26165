"""The tables of a store: segments.csv, videos.csv and one memory-mapped index a stream."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmsada_hpc.data.manifest import StoreManifest
from mmsada_hpc.errors import UserError

INDEX_DTYPE = np.dtype([("offset", "<u8"), ("length", "<u4"), ("crc", "<u4")])
SEGMENTS, VIDEOS = "segments.csv", "videos.csv"
SEGMENT_COLUMNS = ("uid", "domain", "split", "video", "start", "stop", "label")
VIDEO_COLUMNS = ("video", "stream", "shard", "row", "first", "count")
FRAMES_PER_NUMBER = {"rgb": 1, "flow": 2}


def index_file(stream: str) -> str:
    """Name of the index of a stream."""
    return f"index.{stream}.npy"


def member_names(stream: str, video: str, frame: int) -> tuple[str, ...]:
    """Names inside the shard of one frame number: one for RGB, u then v for flow."""
    if stream == "rgb":
        return (f"{video}/frame_{frame:010d}.jpg",)
    return tuple(f"{video}/{axis}/frame_{frame:010d}.jpg" for axis in "uv")


@dataclass(frozen=True)
class Segments:
    """The action segments, one array a column, in the order of segments.csv.

    `domain`, `video`, `label` are indices into `manifest.domains`, `Store.videos`, `manifest.classes`; `start` and
    `stop` are RGB frame numbers, 1-based, inclusive.
    """

    uid: NDArray[np.str_]
    domain: NDArray[np.int64]
    split: NDArray[np.str_]
    video: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    label: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.uid)


@dataclass(frozen=True)
class StreamIndex:
    """Where each video's frames are: per video the shard, first row, first frame number and count (0 = video not in
    this stream).
    """

    shard: tuple[str, ...]
    row: NDArray[np.int64]
    first: NDArray[np.int64]
    count: NDArray[np.int64]
    rows: NDArray[np.void]


def read_table(path: Path, columns: tuple[str, ...]) -> dict[str, list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    if not rows or tuple(rows[0]) != columns:
        raise UserError(f"{path}: columns must be {','.join(columns)}; prepare the store again with --force")
    if any(len(row) != len(columns) for row in rows):
        raise UserError(f"{path}: a row does not have {len(columns)} fields; prepare the store again with --force")
    return {name: [row[i] for row in rows[1:]] for i, name in enumerate(columns)}


def _numbers(table: dict[str, list[str]], column: str, path: Path) -> NDArray[np.int64]:
    try:
        return np.array([int(value) for value in table[column]], np.int64)
    except ValueError as error:
        raise UserError(f"{path}: column {column}: {error}; prepare the store again with --force") from error


def read_stream_index(folder: Path, table: dict[str, list[str]], number: dict[str, int], stream: str) -> StreamIndex:
    path = folder / VIDEOS
    columns = {name: np.zeros(len(number), np.int64) for name in ("row", "first", "count")}
    shard = [""] * len(number)
    values = {name: _numbers(table, name, path) for name in columns}
    for i in (i for i, name in enumerate(table["stream"]) if name == stream):
        video = number[table["video"][i]]
        shard[video] = table["shard"][i]
        for name in columns:
            columns[name][video] = values[name][i]
    rows = np.load(folder / index_file(stream), mmap_mode="r", allow_pickle=False)
    if rows.dtype != INDEX_DTYPE:
        raise UserError(
            f"{folder / index_file(stream)}: not an index of this version; prepare the store again with --force"
        )
    return StreamIndex(tuple(shard), columns["row"], columns["first"], columns["count"], rows)


def read_segments(folder: Path, manifest: StoreManifest, number: dict[str, int]) -> Segments:
    path = folder / SEGMENTS
    table = read_table(path, SEGMENT_COLUMNS)
    domains = {name: i for i, name in enumerate(manifest.domains)}
    try:
        domain = np.array([domains[name] for name in table["domain"]], np.int64)
        video = np.array([number[name] for name in table["video"]], np.int64)
    except KeyError as error:
        raise UserError(
            f"{path}: {error} is in no other table of the store; prepare the store again with --force"
        ) from error
    start, stop, label = (_numbers(table, name, path) for name in ("start", "stop", "label"))
    return Segments(
        np.array(table["uid"], np.str_), domain, np.array(table["split"], np.str_), video, start, stop, label
    )


def csv_bytes(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> bytes:
    """A table as the bytes of its csv file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue().encode()
