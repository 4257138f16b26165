"""`mmsada submit`: parse, compose, submit. The profiles, the script and the local job are in `mmsada_hpc.cluster`."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitit.helpers import DelayedSubmission

from mmsada_hpc.cluster.local import JobFailedError, run_local
from mmsada_hpc.cluster.profile import Profile, load_profile, parse_minutes
from mmsada_hpc.cluster.slurm import sbatch_text, submit_slurm
from mmsada_hpc.config import Config, dump_config, find_config, load_config
from mmsada_hpc.data.layout import BatchLayout
from mmsada_hpc.data.manifest import MANIFEST
from mmsada_hpc.errors import UserError
from mmsada_hpc.grid import is_grid, read_grid
from mmsada_hpc.submit_grid import describe_grid, queue_grid, refuse_unfit, run_grid_here


@dataclass(frozen=True)
class TrainJob:
    """What every rank of a job runs; a module-level class, so that its pickle is only a path and a few words."""

    config: Path
    overrides: tuple[str, ...]

    def __call__(self) -> dict[str, Any]:
        """Read the config and train.

        Returns:
            The content of result.json.
        """
        from mmsada_hpc.train.run import train

        sys.excepthook = _show_user_error
        return train(load_config(self.config, self.overrides))

    def checkpoint(self) -> DelayedSubmission:
        """The job after a time limit or a preemption: the same, as the run goes on from its own checkpoints."""
        return DelayedSubmission(self)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mmsada submit` and launch/submit.py."""
    parser.add_argument("--config", required=True, type=Path, help="YAML of a run or a grid, or its name in configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted keys, of a grid for every run")
    parser.add_argument("--cluster", default="slurm", metavar="NAME", help="profile in configs/cluster or a YAML file")
    parser.add_argument("--nodes", type=int, help="hosts")
    parser.add_argument("--tasks-per-node", type=int, help="ranks on each host (one per GPU)")
    parser.add_argument("--cpus-per-task", type=int, help="cores of each rank")
    parser.add_argument("--gpus-per-node", type=int, help="GPUs of each host")
    parser.add_argument("--time", help="limit: minutes, HH:MM:SS or D-HH:MM:SS")
    parser.add_argument("--partition", help="Slurm partition")
    parser.add_argument("--account", help="Slurm account")
    parser.add_argument("--qos", help="Slurm quality of service")
    parser.add_argument("--only", default="", metavar="TEXT", help="of a grid: the runs with this in their name")
    parser.add_argument("--parallel", type=int, default=1, metavar="N", help="of a grid, here: runs beside each other")
    parser.add_argument("--dry-run", action="store_true", help="print what would be submitted, and submit nothing")


def run(args: argparse.Namespace) -> int:
    """Compose the config and the cluster's profile, and submit; returns the exit status."""
    from mmsada_hpc.methods import batch_layout  # imports torch, which `--help` can do without

    profile = load_profile(args.cluster, _flags(args))
    if is_grid(args.config):
        return _run_grid(args, profile)
    config = load_config(args.config, args.overrides)
    layout = batch_layout(config, profile.world_size)
    name, folder = f"mmsada-{config.run.dir.name}", config.run.dir.absolute() / "submitit"
    if args.dry_run:
        print(describe(config, profile, layout, name=name, folder=folder))
        return 0
    _check_store(config)
    if profile.executor == "slurm":
        print(_queue(args.config, args.overrides, config, profile))
        return 0
    return _run_here(TrainJob(find_config(args.config).absolute(), tuple(args.overrides)), profile, folder)


def _run_grid(args: argparse.Namespace, profile: Profile) -> int:
    from mmsada_hpc.methods import batch_layout

    if args.parallel < 1:
        raise UserError("--parallel must be at least 1")
    grid = read_grid(args.config, args.overrides, only=args.only)
    refuse_unfit(grid, lambda run: batch_layout(run.config, profile.world_size))
    print(describe_grid(grid, profile, parallel=args.parallel), flush=True)
    if args.dry_run:
        return 0
    refuse_unfit(grid, lambda run: _check_store(run.config))
    if profile.executor == "slurm":
        return queue_grid(grid, lambda run: _queue(grid.base, run.overrides, run.config, profile))
    try:
        return run_grid_here(grid, profile, parallel=args.parallel)
    except KeyboardInterrupt:
        print("stopped; finished runs are kept, and the same command goes on with the others", file=sys.stderr)
        return 130


def _queue(path: Path, overrides: Sequence[str], config: Config, profile: Profile) -> str:
    """Hand one run to Slurm; returns what a person should know of it."""
    job = TrainJob(find_config(path).absolute(), tuple(overrides))
    name, folder = f"mmsada-{config.run.dir.name}", config.run.dir.absolute() / "submitit"
    queued = submit_slurm(job, profile, name=name, folder=folder)
    return (
        f"queued as job {queued.job_id}: {profile.world_size} ranks on {profile.nodes} nodes, run {config.run.dir}\n"
        f"follow it with: tail -F {queued.task(0).paths.stdout}"
    )


def describe(config: Config, profile: Profile, layout: BatchLayout, *, name: str, folder: Path) -> str:
    """What a dry run prints: the config, the numbers that follow from it and from the cluster, the script."""
    where = f"{profile.nodes} x {profile.tasks_per_node} (nodes x tasks per node)"
    lines = [
        "# config",
        dump_config(config).rstrip(),
        "",
        "# job",
        f"world size     {layout.world_size} = {where}",
        f"micro batch    {layout.micro_batch} clips a rank",
        f"accumulation   {layout.accumulation} micro-batches an update",
        f"global batch   {layout.global_batch} clips an update, {layout.layout}, batch norm over {layout.group_size}",
        f"time limit     {profile.minutes} minutes",
        "",
    ]
    if profile.executor == "slurm":
        lines += ["# sbatch script", sbatch_text(profile, name=name, folder=folder).rstrip()]
    else:
        lines += [
            f"# no script: {profile.executor} starts {layout.world_size} processes on this host, logs in {folder}"
        ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of launch/submit.py: options and overrides in any order."""
    parser = argparse.ArgumentParser(prog="submit.py", description="Queue a training run on a cluster.")
    add_arguments(parser)
    args = parser.parse_intermixed_args(argv)
    try:
        return run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _check_store(config: Config) -> None:
    """Now rather than after hours in a queue."""
    store = config.data.store
    if store is None:
        raise UserError("data.store is not set: give the folder that `mmsada prepare` made (data.store=FOLDER)")
    if not (store / MANIFEST).is_file():
        raise UserError(
            f"data.store={store}: no {MANIFEST} there, so it is not a store; make one with `mmsada prepare`"
        )


def _run_here(job: TrainJob, profile: Profile, folder: Path) -> int:
    if profile.executor == "debug":
        job()
        return 0
    try:
        run_local(job, profile, folder=folder, screen=sys.stdout)
    except JobFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def _flags(args: argparse.Namespace) -> dict[str, Any]:
    names = ("nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node", "partition", "account", "qos")
    minutes = None if args.time is None else parse_minutes(args.time)
    return {name: getattr(args, name) for name in names} | {"minutes": minutes}


def _show_user_error(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """In a rank's log a wrong input is one line, as it is on the screen."""
    if issubclass(kind, UserError):
        print(f"error: {error}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
