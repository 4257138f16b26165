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
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmsada_hpc.bench.rows import append_row, machine
from mmsada_hpc.bench.start_child import WAYS, Cost, Start
from mmsada_hpc.data.manifest import MANIFEST
from mmsada_hpc.data.progress import Progress
from mmsada_hpc.data.store import Store
from mmsada_hpc.errors import UserError

_TIMEOUT_SECONDS = 600
_WHAT = {
    "mapped": "index mapped, as training does",
    "in memory": "whole index read into memory",
    "objects": "a Python tuple a frame, a dict a segment",
}


@dataclass(frozen=True)
class Median:
    """One way to start, with the store's tables in the page cache or evicted: medians over the repeats, each figure for
    itself, and the range of seconds.
    """

    way: str
    cache: str
    cost: Cost
    fastest_s: float
    slowest_s: float

    @property
    def seconds(self) -> float:
        """From opening to the first plan."""
        return self.cost.open_s + self.cost.plan_s


def bench_start(store: Store, start: Start, *, repeats: int, ways: Sequence[str]) -> list[Median]:
    """Start in `repeats` fresh processes each way, first with the store's tables in the page cache, then evicted."""
    files = [store.path / MANIFEST, *(store.path / entry.file for entry in store.manifest.tables)]
    found: list[Median] = []
    with Progress("starting", total=2 * len(ways) * repeats, unit="start") as progress:
        for cache, bring in (("warm", read_all), ("evicted", evict)):
            for way in ways:
                costs = []
                for _ in range(repeats):
                    bring(files)
                    costs.append(run_once(dataclasses.replace(start, way=way)))
                    progress.to(len(found) * repeats + len(costs))
                found.append(_median(way, cache, costs))
    return found


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


def _median(way: str, cache: str, costs: list[Cost]) -> Median:
    seconds = sorted(cost.open_s + cost.plan_s for cost in costs)
    values = {
        field.name: statistics.median(getattr(cost, field.name) for cost in costs) for field in dataclasses.fields(Cost)
    }
    return Median(way, cache, Cost(**{**values, "clips": costs[0].clips}), seconds[0], seconds[-1])


def describe(store: Store, found: list[Median], *, repeats: int) -> str:
    """The medians as a table; ratios are to the mapped index in the same cache state."""
    frames, cost = store.manifest.frames, found[0].cost
    lines = [
        f"{store.path}: {len(store.segments)} segments, {len(store.videos)} videos, {frames['rgb']} RGB frames, "
        f"{frames['flow']} flow files",
        f"  {machine()}; median of {repeats} fresh processes; first batch of {cost.clips} clips",
        f"  imports: {cost.import_s:.2f} s, {cost.imports_rss_mb:.0f} MB (not counted below)",
        f"  {'cache':<8} {'open s':>8} {'plan s':>8} {'range s':>15} {'USS MB':>8} {'RSS MB':>8} {'read MB':>8} "
        f"{'time x':>7} {'USS x':>7}",
    ]
    for one in found:
        c, base = one.cost, next(b for b in found if (b.way, b.cache) == ("mapped", one.cache))
        lines.append(
            f"  {one.cache:<8} {c.open_s:>8.3f} {c.plan_s:>8.3f} {one.fastest_s:>7.3f}-{one.slowest_s:<7.3f} "
            f"{c.uss_mb:>8.1f} {c.rss_mb:>8.1f} {c.read_mb:>8.1f} {one.seconds / base.seconds:>7.1f} "
            f"{_ratio(c.uss_mb, base.cost.uss_mb):>7}  {_WHAT[one.way]}"
        )
    return "\n".join(lines)


def _ratio(value: float, base: float) -> str:
    return f"{value / base:.1f}" if base > 0 else "-"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mmsada bench start`."""
    parser.add_argument(
        "--store", type=Path, required=True, metavar="STORE", help="a store, e.g. of `bench epic-store`"
    )
    parser.add_argument("--source", default="", metavar="DOMAIN", help="default: the store's first domain")
    parser.add_argument("--target", default="", metavar="DOMAIN", help="default: the store's second domain")
    parser.add_argument("--batch", type=int, default=128, metavar="N", help="global batch (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="fresh processes (default %(default)s)")
    parser.add_argument("--alone", action="store_true", help="leave the plain alternatives out")
    parser.add_argument(
        "--jsonl", type=Path, default=Path("bench.jsonl"), metavar="FILE", help="rows go here (default %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Measure, print, append a row."""
    if args.repeats < 1:
        raise UserError("--repeats must be at least 1")
    store = Store.open(args.store)
    domains = store.manifest.domains
    start = Start("mapped", str(store.path), args.source or domains[0], args.target or domains[-1], args.batch)
    if start.source == start.target:
        raise UserError(f"{store.path}: --source and --target are both {start.source}; name two domains of the store")
    for name in (start.source, start.target):
        store.select(name, "train")
    found = bench_start(store, start, repeats=args.repeats, ways=["mapped"] if args.alone else list(WAYS))
    print(describe(store, found, repeats=args.repeats))
    rows = append_row(args.jsonl, "start", _row(store, start, found, repeats=args.repeats))
    print(f"  {rows} row{'s' * (rows > 1)} added to {args.jsonl}")
    return 0


def _row(store: Store, start: Start, found: list[Median], *, repeats: int) -> dict[str, Any]:
    sizes = {"segments": len(store.segments), "videos": len(store.videos), "frames": store.manifest.frames}
    return {"start": asdict(start), "repeats": repeats, **sizes, "medians": [asdict(one) for one in found]}
