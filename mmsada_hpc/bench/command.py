"""`mmsada bench NAME`: every benchmark is a room, imported when it is asked for.

A benchmark has `HELP`, `add_arguments(parser)` for its own options (those of `all` may require none), and
`run(args, report)`. The options that all of them share are added here: `--json`, `--quick`, `--repeats`, `--profile`.
A tool (a room without measurements) has `HELP`, `add_arguments(parser)` and `run(args)`, which returns the exit status.
"""

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from mmsada_hpc.bench.rows import Report
from mmsada_hpc.cluster.join import join, leave
from mmsada_hpc.cluster.world import World, find_world
from mmsada_hpc.errors import UserError

BENCHES = {
    "loader": "clips from storage, beside plain PyTorch DataLoaders on the same files and cores",
    "step": "the training step against the machine's GEMM rate and beside the naive form of the model",
    "heads": "the fused adaptation heads, beside plain PyTorch",
    "comm": "all-reduce by size, over torch and over MPI; DeepSpeed beside plain DDP",
    "e2e": "the real training loop, and where the time of a step goes on every rank",
    "start": "open a store and plan the first batch: seconds and memory",
}
TOOLS = {
    "compare": "what changed beyond noise between two files of rows",
    "plot": "pictures of the rows of one or more files",
    "curves": "how far apart the losses of runs are that should be alike (precision, engine, ranks)",
    "epic-store": "make a store with the index of all of EPIC's D1-D3 over a few synthetic frames",
}
_MODULES = {"plot": "plots", "epic-store": "epic_store"}
ALL = ("loader", "step", "heads", "comm", "e2e")
_ALL_HELP = f"{', '.join(ALL)}, one after another"
_REPEATS, _QUICK_REPEATS = 5, 3


class _Room(argparse.ArgumentParser):
    """A parser that adds a room's options when words are given to it, so that no other room is imported."""

    room = ""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        room, self.room = self.room, ""
        if room:
            _add_room(self, room)
        return super().parse_known_args(args, namespace)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmarks, as subcommands of `mmsada bench`."""
    rooms = parser.add_subparsers(dest="bench", required=True, metavar="NAME", parser_class=_Room)
    for name, help in {**BENCHES, "all": _ALL_HELP, **TOOLS}.items():
        rooms.add_parser(name, help=help, description=help).room = name


def run(args: argparse.Namespace) -> int:
    """Run the room that was named; a benchmark on every rank that mpiexec or srun has started, where rank 0 speaks."""
    if args.bench in TOOLS:
        code: int = _module(args.bench).run(args)
        return code
    if args.repeats is None:
        args.repeats = _QUICK_REPEATS if args.quick else _REPEATS
    if args.repeats < 1:
        raise UserError("--repeats must be at least 1")
    world = find_world()
    with _screen(world, rows_only=args.json == "-") as rows_to:
        if world.size > 1:
            world = join(world, backend=_backend(world))
        report = Report(
            json_to=None if args.json in (None, "-") else Path(args.json),
            json_stream=rows_to,
            profile_to=args.profile,
            world=world,
        )
        code = _run_all(args, report, world) if args.bench == "all" else _run_one(args.bench, args, report)
    leave()
    return code


def _run_one(name: str, args: argparse.Namespace, report: Report) -> int:
    _module(name).run(args, report)
    report.write()
    return 0


def _run_all(args: argparse.Namespace, report: Report, world: World) -> int:
    """Each with its own options as they come; what cannot run is named at the end, and fails the whole."""
    common = {key: getattr(args, key) for key in ("json", "quick", "repeats", "profile")}
    failed: dict[str, UserError] = {}
    for name in (name for name in ALL if name not in args.skip):
        parser = argparse.ArgumentParser()
        _module(name).add_arguments(parser)
        own = argparse.Namespace(**{**vars(parser.parse_args([])), **common, "bench": name})
        try:
            _run_one(name, own, report)
        except UserError as error:
            if world.size > 1:
                raise
            failed[name] = error
            print(f"{name}: not run: {error}", flush=True)
    for name, why in failed.items():
        print(f"error: bench {name}: {why}", file=sys.stderr)
    return 2 if failed else 0


def _add_room(parser: argparse.ArgumentParser, name: str) -> None:
    if name == "all":
        parser.add_argument("--skip", nargs="+", default=[], choices=ALL, metavar="NAME", help="leave these out")
    else:
        module = _module(name)
        parser.description = module.HELP
        module.add_arguments(parser)
    if name not in TOOLS:
        _add_common(parser)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="append the rows to a file as JSON lines; - is standard output, and the table goes to standard error",
    )
    parser.add_argument("--quick", action="store_true", help="small sizes and few repeats: is everything in order?")
    parser.add_argument(
        "--repeats", type=int, metavar="N", help=f"of each measurement (default {_REPEATS}, quick {_QUICK_REPEATS})"
    )
    parser.add_argument(
        "--profile", type=Path, metavar="FILE", help="write a trace (chrome://tracing) of one repetition"
    )


def _module(name: str) -> Any:
    return importlib.import_module(f"mmsada_hpc.bench.{_MODULES.get(name, name)}")


def _backend(world: World) -> str:
    """Gloo, with NCCL beside it where each rank has a GPU."""
    import torch

    if torch.cuda.device_count() < world.local_size:
        return "gloo"
    torch.cuda.set_device(world.local_rank)
    return "cpu:gloo,cuda:nccl"


@contextlib.contextmanager
def _screen(world: World, *, rows_only: bool) -> Iterator[TextIO | None]:
    """Only rank 0 prints. With `rows_only` what is printed goes to standard error, also what C libraries print, and
    the stream that is given is the old standard output.
    """
    with contextlib.ExitStack() as stack:
        if world.rank != 0:
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        if not rows_only:
            yield None
            return
        sys.stdout.flush()
        kept = os.dup(1)
        stack.callback(os.close, kept)
        rows_to = stack.enter_context(os.fdopen(os.dup(1), "w", encoding="utf-8"))
        os.dup2(2, 1)
        stack.callback(os.dup2, kept, 1)
        if world.rank == 0:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield rows_to
