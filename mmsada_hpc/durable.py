"""Files that are there whole or not at all, also after a power cut: write aside, fsync, rename, fsync the folder."""

import os
from pathlib import Path


def write_atomically(path: Path, payload: bytes | memoryview) -> None:
    """Write `payload` to `path` so that a reader finds the old file or the whole new one, also after a power cut."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
