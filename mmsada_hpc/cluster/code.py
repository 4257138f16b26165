"""Which code this process runs: its own files, as one hash, and whether they are the ones it was told to run."""

import functools
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from mmsada_hpc.errors import UserError

CODE = "MMSADA_CODE"
"""The snapshot that a job must import from, set by the script that sbatch gets."""
_SUFFIXES = (".py", ".cpp", ".h", ".so", ".yaml", ".csv", ".json")


def package_folders() -> tuple[Path, Path]:
    """Where `mmsada_hpc` and `mmsada_kernels` are imported from."""
    import mmsada_hpc
    import mmsada_kernels

    return Path(mmsada_hpc.__file__).resolve().parent, Path(mmsada_kernels.__file__).resolve().parent


@functools.cache
def code_hash() -> str:
    """Twelve hex digits over every file of both packages, configs/ apart, which the config's own hash covers."""
    return hash_of(
        (str(path.relative_to(folder)), path.read_bytes())
        for folder in package_folders()
        for path in sorted(p for p in folder.rglob("*") if p.suffix in _SUFFIXES and "configs" not in p.parts)
    )


def hash_of(files: Iterable[tuple[str, bytes]]) -> str:
    """Twelve hex digits over the names and contents of files, in their order."""
    digest = hashlib.sha256()
    for name, content in files:
        digest.update(f"{name}\0".encode() + hashlib.sha256(content).digest())
    return digest.hexdigest()[:12]


def check_code() -> None:
    """Refuse to run other code than the job's snapshot.

    Raises:
        UserError: names the folder that was imported and the one that should have been.
    """
    wanted = os.environ.get(CODE)
    if not wanted:
        return
    for folder in package_folders():
        if not folder.is_relative_to(Path(wanted).resolve()):
            raise UserError(
                f"{folder.name} was imported from {folder.parent}, but this job was submitted with {CODE}={wanted}: "
                f"does a set-up line change PYTHONPATH, or is that folder not on this host?"
            )
