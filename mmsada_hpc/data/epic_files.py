"""Finding EPIC-KITCHENS frames on disk: folders and tars as released, and the flat naming (spec 4.3)."""

import os
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mmsada_hpc.data.manifest import STREAMS, Stream
from mmsada_hpc.errors import UserError

_VIDEO_FOLDER = re.compile(r"P\d+_\d+")
_FRAME = re.compile(r"(?:^|/)(?:([uv])/)?frame_(\d+)\.jpg$")
_FLAT = re.compile(r"^(.+?)_(?:flow_([uv])|frame)_(\d{10})\.jpg$")
AXES: dict[Stream, tuple[str, ...]] = {"rgb": ("",), "flow": ("u", "v")}


@dataclass(frozen=True)
class Piece:
    """Where the bytes of one frame lie: a whole file (`length` -1) or part of a tar."""

    path: str
    offset: int = 0
    length: int = -1

    def read(self) -> bytes:
        """The bytes; OSError when they cannot be read."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.length)


# Per axis ("" for RGB, "u" and "v" for flow): frame number -> where it is.
Listing = dict[str, dict[int, Piece]]


@dataclass(frozen=True)
class Place:
    """Where one stream of one video lies: a folder, a tar, or folders that hold it among others in the flat naming."""

    form: str
    video: str
    stream: Stream
    paths: tuple[Path, ...]

    def __str__(self) -> str:
        return ", ".join(map(str, self.paths))

    def list(self) -> Listing:
        """Every frame; UserError naming the tar when it cannot be read."""
        if self.form == "tar":
            return _list_tar(self.paths[0], self.stream)
        found: Listing = {axis: {} for axis in AXES[self.stream]}
        for folder in self.paths:
            for axis, number, path in self._files(folder):
                found[axis][number] = Piece(path)
        return found

    def _files(self, folder: Path) -> Iterator[tuple[str, int, str]]:
        if self.form == "flat":
            for entry in os.scandir(folder):
                match = _FLAT.match(entry.name)
                if match and match[1] == self.video and bool(match[2]) == (self.stream == "flow"):
                    yield match[2] or "", int(match[3]), entry.path
            return
        for axis in AXES[self.stream]:
            inner = folder / axis
            for entry in os.scandir(inner) if inner.is_dir() else ():
                match = _FRAME.search(entry.name)
                if match:
                    yield axis, int(match[2]), entry.path

    def fingerprint(self) -> str:
        """Changes when the files do (time stamps of the folders or of the tar)."""
        stats = [
            path.stat()
            for folder in self.paths
            for path in (folder, *(folder / axis for axis in AXES[self.stream] if axis))
            if path.exists()
        ]
        return " ".join(f"{stat.st_size}:{stat.st_mtime_ns}" for stat in stats)


def _list_tar(path: Path, stream: Stream) -> Listing:
    found: Listing = {axis: {} for axis in AXES[stream]}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                match = _FRAME.search(member.name)
                if match and member.isfile() and (match[1] or "") in found:
                    found[match[1] or ""][int(match[2])] = Piece(str(path), member.offset_data, member.size)
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{path}: not a whole, uncompressed tar ({error})") from error
    return found


def refuse(what: str) -> None:
    """A clash that ends the work."""
    raise UserError(what)


def locate(
    root: Path, wanted: frozenset[str], *, on_clash: Callable[[str], None] = refuse
) -> dict[tuple[Stream, str], Place]:
    """Where each stream of the wanted videos lies below `root`; a tar is taken before a folder of the same video.

    A folder or tar belongs to the stream whose name, rgb or flow, is in its path below `root`. UserError when `root`
    is no folder; `on_clash` is told of a video that is there twice, of which the first is taken where it returns.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder (--epic-frames)")
    found: dict[tuple[Stream, str], Place] = {}
    for place in _places(root, wanted):
        key = (place.stream, place.video)
        before = found.get(key)
        if before is None or (before.form, place.form) == ("folder", "tar"):
            found[key] = place
        elif (before.form, place.form) == ("flat", "flat"):
            found[key] = Place("flat", place.video, place.stream, before.paths + place.paths)
        elif (before.form, place.form) != ("tar", "folder"):
            on_clash(f"{place.stream} frames of {place.video} are there twice: {before} and {place}; leave one")
    return found


def _places(root: Path, wanted: frozenset[str]) -> Iterator[Place]:
    seen: set[str] = set()
    for folder, inner, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back up would be walked for ever
            inner.clear()
            continue
        seen.add(real)
        here = Path(folder)
        stream = _stream(here.relative_to(root))
        videos = [name for name in inner if name in wanted or _VIDEO_FOLDER.fullmatch(name)]
        inner[:] = sorted(set(inner) - set(videos))
        if stream is not None:
            tars = [name.removesuffix(".tar") for name in files if name.endswith(".tar")]
            yield from (Place("folder", name, stream, (here / name,)) for name in sorted(videos) if name in wanted)
            yield from (Place("tar", name, stream, (here / f"{name}.tar",)) for name in sorted(tars) if name in wanted)
        yield from _flat_places(here, files, wanted)


def _flat_places(folder: Path, files: list[str], wanted: frozenset[str]) -> Iterator[Place]:
    matches = (_FLAT.match(name) for name in files)
    present: set[tuple[Stream, str]] = {
        ("flow" if match[2] else "rgb", match[1]) for match in matches if match and match[1] in wanted
    }
    yield from (Place("flat", video, stream, (folder,)) for stream, video in sorted(present))


def _stream(below_root: Path) -> Stream | None:
    named: list[Stream] = [stream for part in below_root.parts for stream in STREAMS if stream in part.lower()]
    return named[-1] if named else None
