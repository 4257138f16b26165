"""Which commit the code is of, and what was changed since: for the records, so nothing here may fail."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PATIENCE_S = 20.0


@dataclass(frozen=True)
class GitState:
    """The checkout that the packages lie in."""

    commit: str
    """`no git` where they were installed from a wheel or git cannot be asked."""
    branch: str = ""
    dirty: bool = False
    """Whether tracked files differ from the commit, or there are files that git does not know."""
    diff: str = ""
    """Of the tracked files."""

    def describe(self) -> dict[str, Any]:
        """Without the diff."""
        return {"commit": self.commit, "branch": self.branch, "dirty": self.dirty}


NO_GIT = GitState("no git")


def git_state(folder: Path) -> GitState:
    """The state of the checkout whose top is `folder`; `NO_GIT` where that is none."""
    top = _git(folder, "rev-parse", "--show-toplevel")
    # A folder inside some other checkout, such as a virtual environment or a snapshot, is not under its control.
    if top is None or Path(top.strip()).resolve() != folder.resolve():
        return NO_GIT
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return NO_GIT
    branch = _git(folder, "rev-parse", "--abbrev-ref", "HEAD") or ""
    status = _git(folder, "status", "--porcelain") or ""
    diff = _git(folder, "diff", "--no-color", "--no-ext-diff", "HEAD") or ""
    return GitState(commit.strip(), branch.strip(), bool(status.strip()), diff)


def code_state() -> dict[str, Any]:
    """Of the code that this process runs; inside a job that of the checkout it was copied from."""
    import mmsada_hpc

    folder = Path(mmsada_hpc.__file__).resolve().parents[1]
    record = folder.with_suffix(".json")  # beside a snapshot
    try:
        found: dict[str, Any] = json.loads(record.read_text())["git"]
    except (OSError, ValueError, KeyError, TypeError):
        return git_state(folder).describe()
    return found


def _git(folder: Path, *words: str) -> str | None:
    """What git prints; None where it is missing, fails or does not answer."""
    command = ["git", "-C", str(folder), *words]
    try:
        # Optional locks off: a look must not stand in the way of a person's own git.
        done = subprocess.run(
            command,
            capture_output=True,
            timeout=_PATIENCE_S,
            check=False,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None
