"""The folder a store is built in: empty, half done, complete, or something else that must not be touched."""

import contextlib
import errno
import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from mmsada_hpc.data.manifest import MANIFEST, StoreManifest, read_manifest
from mmsada_hpc.data.records import BUILD
from mmsada_hpc.data.store import check_sizes
from mmsada_hpc.data.tables import SEGMENTS, VIDEOS
from mmsada_hpc.durable import write_atomically
from mmsada_hpc.errors import UserError

_PLAN, _LOCK = "plan.json", "lock"


def canonical(options: Mapping[str, Any]) -> str:
    """Options as text that is the same for the same options."""
    return json.dumps(options, sort_keys=True)


def enter(out: Path, options: Mapping[str, Any], *, inputs: str, force: bool) -> StoreManifest | None:
    """The manifest when the store at `out` is complete; None when there is work to do there.

    UserError when `out` holds something else, a damaged store, or one of other options or inputs, unless `force`,
    which empties it (only of what belongs to a store).
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; --out names a folder")
    if not out.exists() or not any(out.iterdir()):
        return None
    if not (out / MANIFEST).is_file() and not (out / BUILD).is_dir():
        raise UserError(f"{out}: is not empty and not a store; choose another --out")
    if force:
        _clear(out)
        return None
    if not (out / MANIFEST).is_file():
        _same_options(options, _unfinished_options(out), out)
        return None
    manifest = read_manifest(out)
    check_sizes(out, manifest)
    _same_options(options, manifest.options, out)
    if manifest.inputs != inputs:
        raise UserError(f"{out}: was made from other videos or labels (they changed since); --force makes it anew")
    shutil.rmtree(out / BUILD, ignore_errors=True)
    return manifest


def _unfinished_options(out: Path) -> dict[str, Any] | None:
    try:
        options = json.loads((out / BUILD / _PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return options if isinstance(options, dict) else None


def _same_options(options: Mapping[str, Any], before: Mapping[str, Any] | None, out: Path) -> None:
    now = json.loads(canonical(options))
    if before is None or before == now:
        return
    name = next(key for key in sorted({*before, *now}) if before.get(key) != now.get(key))
    raise UserError(
        f"{out}: was begun with {name} = {before.get(name)}, now it is {now.get(name)}; use the same options, "
        f"another --out, or --force to make it anew"
    )


def _clear(out: Path) -> None:
    """Remove what a store consists of, the manifest first, so that no half of it is ever taken for a store."""
    (out / MANIFEST).unlink(missing_ok=True)
    for pattern in ("rgb-*.tar*", "flow-*.tar*", "index.*.npy*", f"{SEGMENTS}*", f"{VIDEOS}*"):
        for path in out.glob(pattern):
            path.unlink()
    shutil.rmtree(out / BUILD, ignore_errors=True)


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the half-done store `out` for this process; UserError when another prepare has it."""
    with open(out / BUILD / _LOCK, "wb") as file:
        if not _lock(file):
            raise UserError(f"{out}: another `mmsada prepare` is at work in it; wait for it to end")
        yield


def _lock(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Some cluster file systems are mounted without locks; there the user must not start two at once.
        return error.errno != errno.EWOULDBLOCK
    return True


def begin(out: Path, options: Mapping[str, Any]) -> None:
    """Make the folder and note the options, so that a later run can tell whether it goes on with the same work."""
    (out / BUILD).mkdir(parents=True, exist_ok=True)
    write_atomically(out / BUILD / _PLAN, canonical(options).encode())
