"""`mmsada bench NAME`: each benchmark is a room with `add_arguments` and `run`."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from mmsada_hpc.bench import epic_store, start


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
    """Run the benchmark that was named."""
    code: int = args.run_bench(args)
    return code
