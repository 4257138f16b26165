"""`mmsada submit`: parse, compose, submit. The profiles, the script and the local job are in `mmsada_hpc.cluster`."""

import argparse
import importlib
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmsada_hpc.cluster.job_record import CANCELLED_FILE
from mmsada_hpc.cluster.local import JobFailedError, run_local
from mmsada_hpc.cluster.profile import Profile, load_profile, parse_gb, parse_minutes
from mmsada_hpc.cluster.queue import active_jobs
from mmsada_hpc.cluster.slurm import need_slurm
from mmsada_hpc.cluster.snapshot import code_variables
from mmsada_hpc.config import Config, load_config
from mmsada_hpc.data.manifest import MANIFEST
from mmsada_hpc.errors import UserError
from mmsada_hpc.submit.grid import is_grid, read_grid
from mmsada_hpc.submit.grids import describe_grid, queue_grid, refuse_unfit, run_grid_here
from mmsada_hpc.submit.job import TrainJob
from mmsada_hpc.submit.queue import Order, folder_of, make_ready, queue_run, storage_warning, write_script
from mmsada_hpc.submit.run_folder import is_finished, refuse_other_run, resolved

# What people type ten times a day, by the room that does it.
_WORDS = {
    "status": "mmsada_hpc.jobs.status",
    "logs": "mmsada_hpc.jobs.logs",
    "cancel": "mmsada_hpc.jobs.cancel",
    "resume": "mmsada_hpc.submit.resume",
    "bench": "mmsada_hpc.submit.bench",
    "scale": "mmsada_hpc.scaling.command",
}
_NUMBERS = ("nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node")
_FLAGS = {
    "nodes": "hosts",
    "tasks_per_node": "ranks on each host (one per GPU)",
    "cpus_per_task": "cores of each rank",
    "gpus_per_node": "GPUs of each host",
    "mem": "memory of each host: GB, or a number with M, G or T",
    "time": "limit: minutes, HH:MM:SS or D-HH:MM:SS",
    "partition": "Slurm partition",
    "account": "Slurm account",
    "qos": "Slurm quality of service",
    "constraint": "node features, for instance h100",
    "dependency": "jobs that must come first, for instance afterok:123",
}
_EPILOG = """
submit.py status [RUN ...]    a table of runs: state, step, clips/s, restarts, lost time
submit.py logs RUN [-f]       what rank 0 prints
submit.py cancel RUN          stop it, for good
submit.py resume RUN          go on from the last checkpoint, also on another number of nodes
submit.py bench --nodes N NAME  a benchmark on every rank of a job
submit.py scale run STUDY     the cells of a study, an array for each number of nodes
Each of them, and this, has --help; `mmsada WORD` is the same.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mmsada submit` and launch/submit.py."""
    parser.add_argument("--config", required=True, type=Path, help="YAML of a run or a grid, or its name in configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted keys, of a grid for every run")
    parser.add_argument("--cluster", default="slurm", metavar="NAME", help="profile in configs/cluster or a YAML file")
    add_profile_arguments(parser)
    parser.add_argument("--chain", type=int, default=1, metavar="K", help="K jobs one after another, never requeued")
    parser.add_argument("--only", default="", metavar="TEXT", help="of a grid: the runs with this in their name")
    parser.add_argument(
        "--array", action="store_true", help="of a grid on Slurm: one job array (what is done anyway; a run is refused)"
    )
    parser.add_argument(
        "--parallel", type=int, metavar="N", help="of a grid: runs beside each other (here 1, on Slurm all)"
    )
    parser.add_argument("--write-script", type=Path, metavar="FILE", help="write a script for plain sbatch instead")
    parser.add_argument("--dry-run", action="store_true", help="print what would be submitted, and submit nothing")


def add_profile_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that go over the cluster's profile."""
    for name, help in _FLAGS.items():
        kind = int if name in _NUMBERS else str
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N" if kind is int else None, help=help)


def profile_flags(args: argparse.Namespace) -> dict[str, Any]:
    """What `add_profile_arguments` read, by the profile's keys; None = not given."""
    flags = {name: getattr(args, name) for name in _FLAGS if name not in ("time", "mem")}
    minutes = None if args.time is None else parse_minutes(args.time)
    return flags | {"minutes": minutes, "mem_gb": None if args.mem is None else parse_gb(args.mem)}


def _flags_again(args: argparse.Namespace) -> list[str]:
    """`--cluster` and the flags over it as a person types them."""
    names = ("cluster", *_FLAGS)
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def run(args: argparse.Namespace) -> int:
    """Compose the config and the cluster's profile, and submit; returns the exit status."""
    from mmsada_hpc.methods import batch_layout  # imports torch, which `--help` can do without

    _check_together(args)
    # A link of a chain must not come back by itself, or two jobs would be at one run.
    once = {"requeue": False} if args.chain > 1 else {}
    profile = load_profile(args.cluster, profile_flags(args) | once)
    if is_grid(args.config):
        return _run_grid(args, profile)
    if args.array:
        raise UserError(f"--array: {args.config} is one run; an array is made of a grid (docs/training.md)")
    config = load_config(args.config, args.overrides)
    layout = batch_layout(config, profile.world_size)
    config = resolved(config, micro_batch=layout.micro_batch)
    order = Order(profile=profile, chain=args.chain)
    if args.dry_run:
        from mmsada_hpc.submit.describe import describe

        print(describe(config, order, layout, plain=args.write_script is not None))
        return 0
    _check_store(config)
    return submit_run(config, order, script=args.write_script)


def submit_run(config: Config, order: Order, *, script: Path | None = None) -> int:
    """Queue a run, write its script or run it here, as the profile says; returns the exit status.

    Args:
        config: resolved.
    """
    run_dir, profile = config.run.dir, order.profile
    if profile.executor != "slurm":
        if order.chain > 1 or script is not None:
            raise UserError(f"--chain and --write-script are for Slurm, not for --cluster {profile.executor}")
        return _run_here(config, order)
    if script is None:
        need_slurm()
    if (warning := storage_warning(run_dir)) is not None:
        print(f"warning: {warning}", file=sys.stderr)
    if script is not None:
        write_script(config, order, script)
        print(f"wrote {script}: `sbatch {script}` queues run {run_dir}")
        return 0
    queued = queue_run(config, order)
    if not queued:
        print(_finished(run_dir))
        return 0
    ids = ", ".join(job.job_id for job in queued)
    print(
        f"queued as job{'s' * (len(queued) > 1)} {ids}: {profile.world_size} ranks on {profile.nodes} nodes, "
        f"run {run_dir}\nfollow it with: submit.py logs -f {run_dir}"
    )
    return 0


def _run_grid(args: argparse.Namespace, profile: Profile) -> int:
    from mmsada_hpc.methods import batch_layout

    if args.chain > 1 or args.write_script is not None:
        raise UserError("--chain and --write-script are for one run, and this is a grid")
    here = profile.executor != "slurm"
    parallel = args.parallel or (1 if here else 256)
    grid = read_grid(args.config, args.overrides, only=args.only)
    layouts = refuse_unfit(grid, lambda run: batch_layout(run.config, profile.world_size))
    print(describe_grid(grid, profile, parallel=args.parallel or 1), flush=True)
    if args.dry_run:
        return 0
    refuse_unfit(grid, lambda run: _check_store(run.config))
    if not here:
        configs = [resolved(r.config, micro_batch=la.micro_batch) for r, la in zip(grid.runs, layouts, strict=True)]
        return queue_grid(grid, configs, Order(profile=profile, parallel=parallel))
    try:
        return run_grid_here(grid, profile, parallel=parallel, flags=_flags_again(args))
    except KeyboardInterrupt:
        print("stopped; finished runs are kept, and the same command goes on with the others", file=sys.stderr)
        return 130


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of launch/submit.py: a word and what belongs to it, or options and overrides in any order."""
    words = list(sys.argv[1:] if argv is None else argv)
    word = words[0] if words and words[0] in _WORDS else None
    parser = argparse.ArgumentParser(
        prog="submit.py" if word is None else f"submit.py {word}",
        description=None if word else "Queue a training run on a cluster.",
        epilog=None if word else _EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    try:
        act = _arguments_of(word, parser)
        return act(parser.parse_args(words[1:]) if word else parser.parse_intermixed_args(words))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141


def _arguments_of(word: str | None, parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Add the arguments of a word, and return what it does."""
    if word is None:
        add_arguments(parser)
        return run
    room = importlib.import_module(_WORDS[word])
    room.add_arguments(parser)
    act: Callable[[argparse.Namespace], int] = room.run
    return act


def _check_together(args: argparse.Namespace) -> None:
    for name in ("chain", "parallel"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise UserError(f"--{name} must be at least 1")
    if args.chain > 1 and args.write_script is not None:
        raise UserError("--chain queues jobs and --write-script does not: use one of them")


def _check_store(config: Config) -> None:
    """Now rather than after hours in a queue."""
    store = config.data.store
    if store is None:
        raise UserError("data.store is not set: give the folder that `mmsada prepare` made (data.store=FOLDER)")
    if not (store / MANIFEST).is_file():
        raise UserError(
            f"data.store={store}: no {MANIFEST} there, so it is not a store; make one with `mmsada prepare`"
        )


def _run_here(config: Config, order: Order) -> int:
    run_dir = config.run.dir
    refuse_other_run(config)
    if is_finished(run_dir):
        print(_finished(run_dir))
        return 0
    if shutil.which("squeue") and (job := active_jobs([run_dir]).get(run_dir)):
        raise UserError(
            f"{run_dir} has job {job.job_id} ({job.state}); `submit.py cancel {run_dir}` before it runs here"
        )
    job_of_ranks = TrainJob(make_ready(config, order))
    if order.resume:
        (run_dir / CANCELLED_FILE).unlink(missing_ok=True)
    if order.profile.executor == "debug":
        job_of_ranks()
        return 0
    os.environ.update(code_variables(order.code))  # of the ranks
    try:
        run_local(job_of_ranks, order.profile, folder=folder_of(run_dir), screen=sys.stdout)
    except JobFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def _finished(run_dir: Path) -> str:
    return f"{run_dir} is finished already; `mmsada report {run_dir}` shows it"
