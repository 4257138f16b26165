"""Records of finished shards, kept in `build/` while a store is being made, so that a killed run loses only what was
under way.
"""

import dataclasses
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmsada_hpc.data.manifest import FileEntry
from mmsada_hpc.data.shards import writing
from mmsada_hpc.data.source import PackedVideo
from mmsada_hpc.data.store import sha256_file
from mmsada_hpc.durable import write_atomically

BUILD = "build"


@dataclass(frozen=True)
class ShardRecord:
    """What one job made: its shard pair (none when every video was skipped), the videos inside, those left out and
    why.
    """

    number: int
    identity: str
    shards: list[FileEntry]
    videos: list[PackedVideo]
    skipped: list[dict[str, str]]


def write_record(folder: Path, record: ShardRecord) -> None:
    """Write the record, rows first: the JSON is what makes it exist."""
    rows = {
        f"{stream}{i}": getattr(video, f"{stream}_rows")
        for i, video in enumerate(record.videos)
        for stream in ("rgb", "flow")
    }
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **rows)
    videos = [{**_scalars(video), "rgb_rows": [], "flow_rows": []} for video in record.videos]
    text = json.dumps(
        {**_scalars(record), "videos": videos, "shards": [dataclasses.asdict(shard) for shard in record.shards]}
    )
    json_path, rows_path = _paths(folder, record.number)
    writing(rows_path, lambda: write_atomically(rows_path, buffer.getvalue()))
    writing(json_path, lambda: write_atomically(json_path, text.encode()))


def read_record(folder: Path, number: int) -> ShardRecord:
    """The record of job `number`; raises OSError, ValueError, KeyError or BadZipFile when there is no whole one."""
    json_path, rows_path = _paths(folder, number)
    raw = json.loads(json_path.read_text(encoding="utf-8"))
    with np.load(rows_path, allow_pickle=False) as rows:
        videos = [
            PackedVideo(**{**video, "rgb_rows": rows[f"rgb{i}"], "flow_rows": rows[f"flow{i}"]})
            for i, video in enumerate(raw["videos"])
        ]
    return ShardRecord(
        raw["number"], raw["identity"], [FileEntry(**entry) for entry in raw["shards"]], videos, raw["skipped"]
    )


def is_finished(folder: Path, number: int, identity: str, *, skip_bad: bool) -> bool:
    """Whether job `number` was finished from the same inputs and options, and its shards are still what they were.

    A shard that left videos out counts only where that is still allowed.
    """
    try:
        record = read_record(folder, number)
        if record.identity != identity or (record.skipped and not skip_bad):
            return False
        return all(_is_whole(folder / shard.file, shard) for shard in record.shards)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return False


def _is_whole(path: Path, entry: FileEntry) -> bool:
    return path.stat().st_size == entry.bytes and sha256_file(path) == entry.sha256


def _paths(folder: Path, number: int) -> tuple[Path, Path]:
    return folder / BUILD / f"{number:05d}.json", folder / BUILD / f"{number:05d}.npz"


def _scalars(record: Any) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
