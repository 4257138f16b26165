"""`mmsada bench NAME`: each benchmark is a room with `add_arguments` and `run`."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from mmsada_hpc.bench import epic_store, start
from mmsada_hpc.cluster.join import join, leave
from mmsada_hpc.cluster.world import find_world


@dataclass(frozen=True)
class Bench:
    """One benchmark."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


BENCHES = {
    "start": Bench("open a store and plan the first batch: seconds and memory", start.add_arguments, start.run),
    "epic-store": Bench(
        "make a store with the index of all of EPIC's D1-D3 over a few synthetic frames",
        epic_store.add_arguments,
        epic_store.run,
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmarks, as subcommands of `mmsada bench`."""
    names = parser.add_subparsers(dest="bench", required=True, metavar="NAME")
    for name, bench in BENCHES.items():
        sub = names.add_parser(name, help=bench.help, description=bench.help)
        bench.add_arguments(sub)
        sub.set_defaults(run_bench=bench.run)


def run(args: argparse.Namespace) -> int:
    """Run the benchmark that was named, on every rank that mpiexec or srun has started; rank 0 speaks."""
    world = find_world()
    if world.size > 1:
        join(world)
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(sys.stdout if world.rank == 0 else nowhere),
    ):
        code: int = args.run_bench(args)
    leave()
    return code
