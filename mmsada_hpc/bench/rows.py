"""One JSON row per measurement, appended to a file, with what is needed to judge it: command, machine, versions."""

import json
import platform
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmsada_hpc.cluster.host import cores
from mmsada_hpc.cluster.join import gather
from mmsada_hpc.cluster.world import find_world
from mmsada_hpc.data.shards import writing
from mmsada_hpc.observe.record import package_versions


def append_row(path: Path, bench: str, values: Mapping[str, Any]) -> int:
    """Add this rank's row to the JSONL file `path`; rank 0 writes those of all ranks. Call it on every rank.

    Returns:
        Rows added.

    Raises:
        UserError: it cannot be written.
    """
    world = find_world()
    row = {
        "bench": bench,
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": shlex.join(["mmsada", *sys.argv[1:]]),
        "machine": machine(),
        "rank": world.rank,
        "world_size": world.size,
        "versions": package_versions(),
        **values,
    }
    rows = gather(world, row)
    if world.rank == 0:
        writing(path, lambda: _append(path, "".join(json.dumps(one) + "\n" for one in rows)))
    return len(rows)


def machine() -> str:
    """This host in words: processor and the cores this process may use."""
    return f"{platform.node()}: {_processor()}, {cores()} cores"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _append(path: Path, line: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(line)
