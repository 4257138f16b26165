"""`mmsada bench start`: how long a rank takes from nothing to its first planned batch, and how much memory, beside the
plain alternatives.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from mmsada_hpc.bench.rows import Report, Row, row
from mmsada_hpc.bench.start_child import WAYS, Cost, Start
from mmsada_hpc.data.manifest import MANIFEST
from mmsada_hpc.data.progress import Progress
from mmsada_hpc.data.store import Store
from mmsada_hpc.errors import UserError

HELP = (
    "How long a rank takes from nothing to its first planned batch, and how much memory it adds: the mapped index of "
    "training, the whole index in memory, and a Python tuple a frame with a dict a segment. Imports are not counted."
)
_TIMEOUT_SECONDS = 600
_WHAT = {"mapped": "mapped index", "in memory": "index in memory", "objects": "Python objects"}
_PLAIN = "objects"


def bench_start(store: Store, start: Start, *, repeats: int, ways: Sequence[str], report: Report) -> None:
    """Start in `repeats` fresh processes each way, first with the store's tables in the page cache, then evicted."""
    files = [store.path / MANIFEST, *(store.path / entry.file for entry in store.manifest.tables)]
    with Progress("starting", total=2 * len(ways) * repeats, unit="start") as progress:
        for k, (cache, bring) in enumerate((("warm", read_all), ("evicted", evict))):
            costs: dict[str, list[Cost]] = {way: [] for way in ways}
            for _ in range(repeats):
                for way in ways:
                    bring(files)
                    costs[way].append(run_once(dataclasses.replace(start, way=way)))
                    progress.to(k * len(ways) * repeats + sum(map(len, costs.values())))
            for one in rows_of(store, start, costs, cache=cache):
                report.add(one)


def rows_of(store: Store, start: Start, costs: Mapping[str, list[Cost]], *, cache: str) -> list[Row]:
    """Seconds and memory of each way; the baseline is the plain alternative, Python objects, where it was measured."""
    sizes = {"segments": len(store.segments), "videos": len(store.videos), "frames": store.manifest.frames}
    rows: list[Row] = []
    for figure, unit, of in (
        ("seconds", "s", lambda cost: cost.open_s + cost.plan_s),
        ("memory", "MB", lambda cost: cost.uss_mb),
    ):
        plain: Row | None = None
        for way in sorted(costs, key=lambda way: way != _PLAIN):
            name = f"{figure}, {_WHAT[way]}, {cache}, {len(store.segments)} segments, N={start.batch}"
            details = {**sizes, **_medians(costs[way]), "way": way, "cache": cache, "start": asdict(start)}
            values = [of(cost) for cost in costs[way]]
            rows.append(row("start", name, values, unit, better="lower", baseline=plain, details=details))
            plain = rows[-1] if way == _PLAIN else plain
    return rows


def _medians(costs: Sequence[Cost]) -> dict[str, float]:
    return {field.name: statistics.median(getattr(cost, field.name) for cost in costs) for field in fields(Cost)}


def run_once(start: Start) -> Cost:
    """One start in a fresh process; UserError with its last line when it fails."""
    command = [sys.executable, "-m", "mmsada_hpc.bench.start_child", json.dumps(asdict(start))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{start.store}: a start took more than {_TIMEOUT_SECONDS} s ({start.way})") from error
    if done.returncode:
        raise UserError(f"{start.store}: could not be started from: {(done.stderr.splitlines() or ['no message'])[-1]}")
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def read_all(files: Sequence[Path]) -> None:
    """Bring files into the page cache."""
    for path in files:
        path.read_bytes()


def evict(files: Sequence[Path]) -> None:
    """Ask the kernel to forget files; `read_mb` of the start that follows shows whether it did."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mmsada bench start`."""
    parser.add_argument(
        "--store", type=Path, required=True, metavar="STORE", help="a store, e.g. of `bench epic-store`"
    )
    parser.add_argument("--source", default="", metavar="DOMAIN", help="default: the store's first domain")
    parser.add_argument("--target", default="", metavar="DOMAIN", help="default: the store's second domain")
    parser.add_argument("--batch", type=int, default=128, metavar="N", help="global batch (default %(default)s)")
    parser.add_argument("--alone", action="store_true", help="leave the plain alternatives out")


def run(args: argparse.Namespace, report: Report) -> None:
    """Measure `args.repeats` fresh processes each way."""
    store = Store.open(args.store)
    domains = store.manifest.domains
    first, second = (domains[0], domains[min(1, len(domains) - 1)])
    start = Start("mapped", str(store.path), args.source or first, args.target or second, args.batch)
    if start.source == start.target:
        raise UserError(f"{store.path}: --source and --target are both {start.source}; name two domains of the store")
    for name in (start.source, start.target):
        store.select(name, "train")
    bench_start(store, start, repeats=args.repeats, ways=["mapped"] if args.alone else list(WAYS), report=report)
