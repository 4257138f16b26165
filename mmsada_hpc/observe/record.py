"""run.json: with which command, versions and machine a run was started, once for every time it was (re)started."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from mmsada_hpc.observe.git_state import code_state

RECORD_FILE = "run.json"
_PACKAGES = (
    "mmsada-hpc",
    "torch",
    "deepspeed",
    "nvidia-dali-cuda130",
    "nvidia-dali-cuda120",
    "triton",
    "mpi4py",
    "numpy",
)


def package_versions() -> dict[str, str]:
    """Versions of Python and the installed packages a result depends on, read without importing them."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def read_json(path: Path) -> dict[str, Any]:
    """A mapping; empty where there is none that can be read."""
    return _mapping(path, json.loads)


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping; empty where there is none that can be read."""
    import yaml  # not at the top: benchmarks write records on a bare GPU image, too

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C: hundreds of configs a second

    def parse(text: bytes) -> Any:
        try:
            return yaml.load(text, Loader=loader)
        except yaml.YAMLError as error:
            raise ValueError(str(error)) from error

    return _mapping(path, parse)


def _mapping(path: Path, parse: Callable[[bytes], Any]) -> dict[str, Any]:
    try:
        found = parse(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON file whole or not at all, so that a reader beside a running job never sees half of one."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def write_record(
    run_dir: str | Path, *, command: Sequence[str] | None = None, extra: Mapping[str, Any] | None = None
) -> None:
    """Adds this start to `run_dir`/run.json. `command` defaults to this process's; `extra`: e.g. the device."""
    path = Path(run_dir) / RECORD_FILE
    start = {
        "command": shlex.join(command if command is not None else sys.argv),
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "host": platform.node(),
        "versions": package_versions(),
        "git": code_state(),
        **(extra or {}),
    }
    write_json(path, {"starts": [*read_record(run_dir), start]})


def read_record(run_dir: str | Path) -> list[dict[str, Any]]:
    """The starts of a run, oldest first; empty where nothing (readable) was recorded."""
    try:
        starts = json.loads((Path(run_dir) / RECORD_FILE).read_text(encoding="utf-8"))["starts"]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # a note for people: a damaged one is no reason to stop a run or a report
    return [start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else []
