"""`mmsada scale run STUDY`: what is not finished, on Slurm as arrays, else here; the same command goes on."""

import argparse
import sys
from collections.abc import Iterable

from mmsada_hpc.cluster.profile import Profile
from mmsada_hpc.cluster.queue import only_submitter
from mmsada_hpc.cluster.slurm import need_slurm
from mmsada_hpc.data.store import Store
from mmsada_hpc.errors import UserError
from mmsada_hpc.scaling.cells import Study
from mmsada_hpc.scaling.plan import add_study_arguments, describe, make_plan, study_of, totals
from mmsada_hpc.scaling.refusals import profile_for
from mmsada_hpc.submit.grid import Grid
from mmsada_hpc.submit.grids import queue_grid, run_grid_here
from mmsada_hpc.submit.queue import Order, storage_warning
from mmsada_hpc.submit.run_folder import resolved

HELP = (
    "Run the cells of a study that are not finished: on Slurm one array for each number of nodes and ranks (the tasks "
    "of an array share what they ask for), else on this host. Whatever ended it, the same command goes on: finished "
    "cells are kept, begun ones go on from their checkpoints, queued ones are left alone."
)
_ALL = 256
"""Tasks of an array at once."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mmsada scale run`."""
    add_study_arguments(parser)
    parser.add_argument(
        "--parallel", type=int, metavar="N", help="cells beside each other (here 1, of an array on Slurm all)"
    )
    parser.add_argument("--again", action="store_true", help="also the cells that diverged: losses that are no numbers")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and what would be run, and run nothing")


def run(args: argparse.Namespace) -> int:
    """Run or queue; returns the exit status."""
    if args.parallel is not None and args.parallel < 1:
        raise UserError("--parallel must be at least 1")
    study = study_of(args)
    plan = make_plan(study)
    print(describe(plan) if args.dry_run else "\n".join(totals(plan)), flush=True)
    if plan.refused:
        how = "" if args.dry_run else f"; `mmsada scale plan {study.path}` says why"
        print(f"left out: {len(plan.refused)} cells that cannot run{how}", flush=True)
    if plan.diverged and not args.again:
        print(f"left as they are: {len(plan.diverged)} cells that diverged (--again tries them once more)", flush=True)
    wanted = {"new", "begun"} | ({"diverged"} if args.again else set())
    grids = study.by_resources(wanted)
    profiles = {key: profile_for(study.cluster, *key) for key in grids}
    if args.dry_run or not grids:
        print("\n".join(_would(grids, profiles)) or "nothing to run")
        return 0
    _check_stores(grids.values())
    with only_submitter([study.folder], patience_s=1.0):
        return _run(study, grids, profiles, parallel=args.parallel)


def _run(
    study: Study, grids: dict[tuple[int, int], Grid], profiles: dict[tuple[int, int], Profile], *, parallel: int | None
) -> int:
    worst = 0
    try:
        for number, (key, grid) in enumerate(grids.items(), 1):
            profile = profiles[key]
            print(f"{number} of {len(grids)}: {_what(grid, profile)}", flush=True)
            if profile.executor == "slurm":
                worst = max(worst, _queue(grid, profile, parallel or _ALL))
            else:
                flags = ["--cluster", study.cluster, "--tasks-per-node", str(profile.tasks_per_node)]
                worst = max(worst, run_grid_here(grid, profile, parallel=parallel or 1, flags=flags))
    except KeyboardInterrupt:
        print("stopped; finished cells are kept, and the same command goes on with the others", file=sys.stderr)
        return 130
    return worst


def _queue(grid: Grid, profile: Profile, parallel: int) -> int:
    need_slurm()
    if (warning := storage_warning(grid.folder)) is not None:
        print(f"warning: {warning}", file=sys.stderr)
    # a cell's config holds its micro-batch already
    return queue_grid(grid, [resolved(one.config) for one in grid.runs], Order(profile=profile, parallel=parallel))


def _would(grids: dict[tuple[int, int], Grid], profiles: dict[tuple[int, int], Profile]) -> list[str]:
    return [f"would run: {_what(grid, profiles[key])}" for key, grid in grids.items()]


def _what(grid: Grid, profile: Profile) -> str:
    ranks = f"{profile.nodes} node{'s' * (profile.nodes > 1)} x {profile.tasks_per_node} ranks"
    if profile.executor != "slurm":
        return f"{len(grid.runs)} cells on {profile.tasks_per_node} ranks of this host"
    return f"an array of {len(grid.runs)} cells, each on {ranks}"


def _check_stores(grids: Iterable[Grid]) -> None:
    """Now rather than after hours in a queue."""
    for store in {one.config.data.store for grid in grids for one in grid.runs}:
        if store is None:
            raise UserError("data.store is not set: give the folder that `mmsada prepare` made (data.store=FOLDER)")
        Store.open(store).close()
