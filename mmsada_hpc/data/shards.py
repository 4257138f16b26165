"""Writing shards: plain tar files whose payload offsets are known, hashed as they are written, renamed when whole."""

import contextlib
import errno
import hashlib
import io
import os
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mmsada_hpc.data.manifest import FileEntry, Stream
from mmsada_hpc.data.tables import INDEX_DTYPE
from mmsada_hpc.durable import sync_folder
from mmsada_hpc.errors import UserError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_BLOCK = tarfile.BLOCKSIZE
Row = tuple[int, int, int]
NO_FRAME: Row = (0, 0, 0)
T = TypeVar("T")


def disk_error(path: Path, error: OSError) -> UserError:
    """The user's message for a failed write: a full disk says what to do, any other failure its reason."""
    if error.errno in _FULL:
        return UserError(
            f"{path}: the disk is full ({error.strerror}); free space or choose another --out, then run the same "
            f"command again: finished shards are kept"
        )
    return UserError(f"{path}: cannot be written ({error.strerror})")


def writing(path: Path, action: Callable[[], T]) -> T:
    """Run `action`, which writes `path`, with OSError turned into the user's message."""
    try:
        return action()
    except OSError as error:
        raise disk_error(path, error) from error


@dataclass(frozen=True)
class Mark:
    """A place in a shard to go back to when the video begun there turns out to be unusable."""

    offset: int
    digest: "hashlib._Hash"


class ShardWriter:
    """One tar shard under construction as `<name>.<pid>.tmp`; `finish` makes it real, `abandon` leaves nothing
    behind.
    """

    def __init__(self, folder: Path, name: str, stream: Stream) -> None:
        self.path = folder / name
        self.stream = stream
        self._temporary = folder / f"{name}.{os.getpid()}.tmp"
        self._digest = hashlib.sha256()
        self._offset = 0
        self._file = writing(self.path, self._open)

    def add(self, member: str, payload: bytes) -> Row:
        """Append one file; returns its index row (offset of the payload, length, crc32)."""
        info = tarfile.TarInfo(member)
        info.size = len(payload)
        header = info.tobuf(tarfile.GNU_FORMAT)
        offset = self._offset + len(header)
        self._write(header + payload + bytes(-len(payload) % _BLOCK))
        return offset, len(payload), zlib.crc32(payload)

    def mark(self) -> Mark:
        """Remember this place."""
        return Mark(self._offset, self._digest.copy())

    def rewind(self, mark: Mark) -> None:
        """Forget everything written since `mark`."""
        writing(self.path, lambda: self._cut(mark.offset))
        self._offset, self._digest = mark.offset, mark.digest.copy()

    def finish(self) -> FileEntry:
        """End the tar, make it durable, give it its name."""
        self._write(bytes(2 * _BLOCK))
        writing(self.path, self._publish)
        return FileEntry(self.path.name, self._offset, self._digest.hexdigest(), self.stream)

    def abandon(self) -> None:
        """Remove the unfinished file; after `finish` this does nothing."""
        # Closing flushes, which fails again on the disk that was just reported as full; the descriptor is closed all
        # the same.
        with contextlib.suppress(OSError):
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _open(self) -> io.BufferedWriter:
        return io.BufferedWriter(io.FileIO(self._temporary, "wb"), buffer_size=1 << 20)

    def _cut(self, offset: int) -> None:
        self._file.seek(offset)
        self._file.truncate()

    def _publish(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._temporary, self.path)
        sync_folder(self.path.parent)

    def _write(self, block: bytes) -> None:
        writing(self.path, lambda: self._file.write(block))
        self._digest.update(block)
        self._offset += len(block)


def as_rows(rows: list[Row]) -> NDArray[np.void]:
    """Index rows as the structured array the store keeps."""
    return np.array(rows, INDEX_DTYPE)
