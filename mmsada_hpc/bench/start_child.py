"""One start of one rank in a fresh process: open a store, plan the first batch, print what that took as JSON.

`python -m mmsada_hpc.bench.start_child '{"way": ..., "store": ..., "source": ..., "target": ..., "batch": ...}'`
"""

import csv
import gc
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

_MB = 1e6


@dataclass(frozen=True)
class Start:
    """What is started. `way` is a key of `WAYS`."""

    way: str
    store: str
    source: str
    target: str
    batch: int


@dataclass(frozen=True)
class Cost:
    """Seconds and megabytes (1e6 bytes) of one start. Memory is what opening and planning added to the process after
    its imports: USS is what only this process has, RSS all that it has mapped in; `read_mb` came from the disk.
    """

    import_s: float
    open_s: float
    plan_s: float
    cpu_s: float
    imports_rss_mb: float
    uss_mb: float
    rss_mb: float
    read_mb: float
    clips: int


def _nothing(folder: Path) -> None:
    """The index stays on disk, mapped."""


def _whole_index(folder: Path) -> Any:
    """Every index row read into memory."""
    return [np.load(path, allow_pickle=False) for path in sorted(folder.glob("index.*.npy"))]


def _objects(folder: Path) -> Any:
    """A tuple per frame and a dict per segment, as a loader has them that lists its files in Python."""
    frames = [rows.tolist() for rows in _whole_index(folder)]
    with open(folder / "segments.csv", newline="", encoding="utf-8") as file:
        return frames, list(csv.DictReader(file))


WAYS: dict[str, Callable[[Path], Any]] = {"mapped": _nothing, "in memory": _whole_index, "objects": _objects}


def measure(start: Start) -> Cost:
    """Start once; only the first call in a process measures a fresh start."""
    begun = time.perf_counter()
    from mmsada_hpc.cluster.world import find_world
    from mmsada_hpc.config import load_config
    from mmsada_hpc.data.store import Store
    from mmsada_hpc.methods import find_method
    from mmsada_hpc.train.setup import Setup

    settings = {"data.store": start.store, "data.source": f"[{start.source}]", "data.target": f"[{start.target}]"}
    config = load_config(None, [f"{k}={v}" for k, v in settings.items()] + [f"train.global_batch={start.batch}"])
    find_method(config.method.name)
    imported = time.perf_counter()
    gc.collect()
    process = psutil.Process()
    before, read = process.memory_full_info(), _read_bytes(process)
    clock, cpu = time.perf_counter(), time.process_time()
    store = Store.open(start.store)
    kept = WAYS[start.way](store.path)
    opened = time.perf_counter()
    plan = Setup(config, store, find_world({}, host="alone")).planner.step(1, 0)
    planned, cpu = time.perf_counter(), time.process_time() - cpu
    gc.collect()
    after = process.memory_full_info()
    del kept
    return Cost(
        imported - begun,
        opened - clock,
        planned - opened,
        cpu,
        before.rss / _MB,
        (after.uss - before.uss) / _MB,
        (after.rss - before.rss) / _MB,
        (_read_bytes(process) - read) / _MB,
        len(plan),
    )


def _read_bytes(process: psutil.Process) -> int:
    return int(process.io_counters().read_bytes)


if __name__ == "__main__":
    print(json.dumps(asdict(measure(Start(**json.loads(sys.argv[1]))))))
