"""A copy of the code in the run folder, which the job imports in place of the checkout: what was submitted runs,
whatever is edited while it waits.
"""

import json
import os
import platform
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from mmsada_hpc.cluster.code import CODE, hash_of, package_folders
from mmsada_hpc.config import config_folder
from mmsada_hpc.durable import sync_folder, write_atomically
from mmsada_hpc.errors import UserError
from mmsada_hpc.observe.git_state import git_state
from mmsada_hpc.observe.record import package_versions

_LEFT_OUT = ("__pycache__", ".pyc", ".tmp", ".swp", "~")


def take_snapshot(folder: Path) -> Path:
    """Copy both packages (with a compiled operator), configs/ and launch/ to `folder/<hash>`.

    `<hash>.json` beside it says which commit, versions and host they are of, `<hash>.diff` what was changed since the
    commit. An equal snapshot that is there already is used again.

    Args:
        folder: `code/` of a run or a grid.

    Raises:
        UserError: it could not be written.
    """
    files = dict(sorted(_files()))
    name = hash_of(files.items())
    final = folder / name
    if final.is_dir():
        return final
    temporary = folder / f".{name}.{socket.gethostname()}.{os.getpid()}.tmp"
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        _write_record(folder, name)
        for path, content in files.items():
            target = temporary / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        _rename(temporary, final)
    except OSError as error:
        raise UserError(f"{final}: the code could not be copied there ({error.strerror})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def snapshot_name() -> str:
    """The folder that `take_snapshot` would make of the code as it is now."""
    return hash_of(sorted(_files()))


def code_variables(snapshot: Path | None) -> dict[str, str]:
    """With these in its environment a Python imports every package from the snapshot; None = what is installed."""
    if snapshot is None:
        return {}
    others = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    # `python -m` would look into the working folder first, which may be the checkout.
    return {CODE: str(snapshot), "PYTHONPATH": os.pathsep.join([str(snapshot), *others]), "PYTHONSAFEPATH": "1"}


def _files() -> Iterator[tuple[str, bytes]]:
    """Path in the snapshot -> content, all read before anything is written: somebody may be editing."""
    product, kernels = package_folders()
    launch = product.parent / "launch"
    folders = {"mmsada_hpc": product, "mmsada_kernels": kernels, "mmsada_hpc/configs": config_folder()}
    if launch.is_dir():  # in a checkout
        folders["launch"] = launch
    for name, folder in folders.items():
        for path in folder.rglob("*"):
            inside = path.relative_to(folder)
            if path.is_file() and not any(part.startswith(".") or part.endswith(_LEFT_OUT) for part in inside.parts):
                yield f"{name}/{inside}", path.read_bytes()


def _write_record(folder: Path, name: str) -> None:
    git = git_state(package_folders()[0].parent)
    record = {
        "git": git.describe(),
        "taken": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "host": platform.node(),
        "python": sys.executable,
        "versions": package_versions(),
    }
    write_atomically(folder / f"{name}.json", (json.dumps(record, indent=1) + "\n").encode())
    if git.diff:
        write_atomically(folder / f"{name}.diff", git.diff.encode())


def _rename(temporary: Path, final: Path) -> None:
    try:
        os.rename(temporary, final)
    except OSError:
        if not final.is_dir():  # another submitter was first
            raise
    sync_folder(final.parent)
