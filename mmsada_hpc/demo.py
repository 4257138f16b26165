"""`mmsada demo`: the whole way on toy kitchens. Renders them, packs them, trains source_only and mmsada on two ranks
through the launcher, writes the report.
"""

import argparse
import shutil
import time
from pathlib import Path

from mmsada_hpc.data import demo as toy_kitchens
from mmsada_hpc.errors import UserError
from mmsada_hpc.observe.report import write_report
from mmsada_hpc.submit import command

METHODS = ("source_only", "mmsada")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mmsada demo`."""
    parser.add_argument("--runs", type=Path, default=Path("runs/demo"), help="folder of the runs (default %(default)s)")
    parser.add_argument(
        "--stores", type=Path, default=Path("stores"), help="folder of videos and store (default %(default)s)"
    )
    parser.add_argument("--ranks", type=int, default=2, help="ranks on this machine (default %(default)s)")
    parser.add_argument("--again", action="store_true", help="forget finished runs and train anew")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted keys of configs/demo.yaml")


def run(args: argparse.Namespace) -> int:
    """Data, two runs, one report."""
    begin = time.monotonic()
    videos, store = args.stores / "demo_videos", args.stores / "demo"
    _say("toy kitchens (synthetic): rendering, flow, packing")
    toy_kitchens.run(_arguments(["--out", str(videos), "--store", str(store)]))
    runs = [args.runs / method for method in METHODS]
    for method, folder in zip(METHODS, runs, strict=True):
        _say(f"{method}, K1 -> K2, {args.ranks} ranks")
        if args.again:
            shutil.rmtree(folder, ignore_errors=True)
        _train(method, folder, store, args)
    report = write_report(runs, out=args.runs / "report.html")
    _say(f"done in {time.monotonic() - begin:.0f} s; the report of both runs: {report.resolve()}")
    return 0


def _train(method: str, folder: Path, store: Path, args: argparse.Namespace) -> None:
    job = ["--config", "demo.yaml", "--cluster", "local", "--tasks-per-node", str(args.ranks)]
    keys = [f"method.name={method}", f"run.dir={folder}", f"data.store={store}", *args.overrides]
    if command.main([*job, *keys]):
        raise UserError(f"{method} did not finish; its log is {folder / 'run.log'}")


def _arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    toy_kitchens.add_arguments(parser)
    return parser.parse_args(words)


def _say(text: str) -> None:
    print(f"\n== {text}", flush=True)
