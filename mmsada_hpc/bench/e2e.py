"""`mmsada bench e2e`: the real training loop, and where the time of an update goes on every rank; with `--overhead`
what all around the network costs over a bare PyTorch loop.
"""

import argparse
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmsada_hpc.bench.e2e_loop import TimedLoop
from mmsada_hpc.bench.e2e_overhead import bench_overhead
from mmsada_hpc.bench.e2e_parts import Account, account
from mmsada_hpc.bench.e2e_run import bench_config, coming_together, kept, shape_of, short_run, train_for
from mmsada_hpc.bench.rows import SHOWN, Report, Row, row
from mmsada_hpc.cluster.join import gather
from mmsada_hpc.config import Config, config_hash
from mmsada_hpc.errors import UserError

HELP = (
    "The real training loop for some updates of a config (without one, the demo's on toy kitchens that are rendered "
    "here): the time of an update split into data wait, forward, backward, communication, update, checkpoint and the "
    "rest, on every rank. At ZeRO 1-3 the ranks also talk inside backward and update, which then hold that time. "
    "--overhead: the same loop beside a bare PyTorch loop on the same clips in memory."
)
_UPDATES, _QUICK_UPDATES = 10, 3
_PROFILED = 3


def rows_of_rank(shape: str, found: Account, config: Config) -> list[Row]:
    """Throughput, the whole update and its parts."""
    rate = [1000 * config.train.global_batch / whole for whole in found.whole]
    known = {
        "rest_ms": {name: round(statistics.median(values), 3) for name, values in found.rest.items()},
        "cpu_ms": round(statistics.median(found.cpu), 3),
        "one_checkpoint_ms": round(statistics.median(found.saves), 3),
        "its_write_in_background_ms": round(statistics.median(found.writes), 3),
    }
    whole = row("e2e", f"whole update, {shape}", found.whole, "ms", better="lower", details=known)
    rows = [row("e2e", f"throughput, {shape}", rate, "clips/s", better="higher"), whole]
    for part, values in found.parts.items():
        share: dict[str, Any] = {"percent": round(100 * statistics.median(values) / whole.value, 2)}
        if part == "communication" and config.train.engine == "deepspeed" and config.train.zero_stage:
            share[SHOWN] = "more of it in backward and update (ZeRO)"
        rows.append(row("e2e", f"{part}, {shape}", values, "ms", better="lower", details=share))
    return rows


def rows_of_slowest(shape: str, ranks: Sequence[Account]) -> list[Row]:
    """The whole update and its parts on the rank that each took longest on; nothing for one rank."""
    if len(ranks) == 1:
        return []
    rows = []
    for part in ("whole update", *ranks[0].parts):
        of_rank = [found.whole if part == "whole update" else found.parts[part] for found in ranks]
        slowest = max(range(len(ranks)), key=lambda rank: statistics.median(of_rank[rank]))
        name, details = f"{part}, slowest rank, {shape}", {"slowest_rank": slowest}
        rows.append(row("e2e", name, of_rank[slowest], "ms", better="lower", details=details))
    return rows


def bench_training(args: argparse.Namespace, report: Report) -> None:
    """Train for a while; every rank adds its own rows, rank 0 also those of the slowest."""
    timed = (1 + args.repeats) * args.updates
    with coming_together() as world:
        config = bench_config(args.config, args.overrides, stores=args.stores)
        profile = report.profile if args.profile else None
        short = short_run(config, timed + (_PROFILED if profile else 0), save_every=args.updates, runs=args.runs)
        loops: list[TimedLoop] = []
        make_loop = kept(partial(TimedLoop, num_timed=timed, profile=profile), loops)
        train_for(short, world, make_loop)
        watched = loops[0].watched
        saves, writes = (seconds[: 1 + args.repeats] for seconds in (watched.saves, watched.writes))
        found = account(config, watched.updates[:timed], saves, writes, per_repeat=args.updates)
        shape = shape_of(config, world.size)
        report.config_hash = config_hash(config)
        slowest = rows_of_slowest(shape, gather(world, found))
        for one in [*rows_of_rank(shape, found, config), *(slowest if world.rank == 0 else [])]:
            report.add(one)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mmsada bench e2e`."""
    add = parser.add_argument
    add("--config", type=Path, help="YAML of a run, a file or a name in configs/ (default: the demo on toy kitchens)")
    add("--updates", type=int, metavar="N", help=f"a repeat (default {_UPDATES}, quick {_QUICK_UPDATES})")
    add("--overhead", action="store_true", help="beside a bare PyTorch loop on the same clips in memory, on one rank")
    add("--runs", type=Path, default=Path("runs/bench"), metavar="DIR", help="of the short runs (default %(default)s)")
    add("--stores", type=Path, default=Path("stores"), metavar="DIR", help="of the toy kitchens (default %(default)s)")
    add("overrides", nargs="*", default=[], metavar="key=value", help="dotted keys of the config")


def run(args: argparse.Namespace, report: Report) -> None:
    """Where the time goes, or what the framework costs."""
    if args.updates is None:
        args.updates = _QUICK_UPDATES if args.quick else _UPDATES
    if args.updates < 1:
        raise UserError("--updates must be at least 1")
    (bench_overhead if args.overhead else bench_training)(args, report)
