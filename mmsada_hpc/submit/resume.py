"""`submit.py resume RUN`: go on from the newest checkpoint, with the run's own code, also on other nodes."""

import argparse
import os
from pathlib import Path
from typing import Any

from mmsada_hpc.cluster.job_record import JobRecord, read_jobs
from mmsada_hpc.cluster.profile import Profile, build_profile, load_profile
from mmsada_hpc.config import Config, load_config
from mmsada_hpc.errors import UserError
from mmsada_hpc.observe.record import read_record
from mmsada_hpc.submit.command import add_profile_arguments, profile_flags, submit_run
from mmsada_hpc.submit.queue import Order
from mmsada_hpc.submit.run_folder import config_of, is_finished, resolved


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mmsada resume`."""
    parser.add_argument(
        "folder", type=Path, metavar="RUN", help="folder of a run that was stopped, cancelled or failed"
    )
    parser.add_argument("--cluster", metavar="NAME", help="another profile than that of its last job")
    parser.add_argument("--new-code", action="store_true", help="the code as it is now, in place of the run's own copy")
    parser.add_argument("--chain", type=int, default=1, metavar="K", help="K jobs one after another, never requeued")
    add_profile_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Queue the run once more, or go on here where no job of it was ever queued; returns the exit status."""
    run_dir: Path = args.folder
    path = config_of(run_dir)
    if args.chain < 1:
        raise UserError("--chain must be at least 1")
    if is_finished(run_dir):
        raise UserError(f"{run_dir} is finished; `mmsada report {run_dir}` shows it")
    jobs = read_jobs(run_dir)
    last = jobs[-1] if jobs else None
    profile = _profile(args, last, run_dir)
    config = _for_world(load_config(path), profile.world_size, run_dir)
    code = None if last is None or args.new_code else _snapshot(run_dir, last)
    return submit_run(config, Order(profile=profile, code=code, chain=args.chain, resume=True))


def _profile(args: argparse.Namespace, last: JobRecord | None, run_dir: Path) -> Profile:
    """Of the last job, or of `--cluster`; here where there was no job; the flags go over it."""
    flags = profile_flags(args) | ({"requeue": False} if args.chain > 1 else {})
    if args.cluster is None and last is not None and last.profile:
        # what it waited for then is over
        return build_profile({**last.profile, "dependency": None}, flags, path=run_dir / "jobs.jsonl")
    if args.cluster is None and flags["tasks_per_node"] is None:
        flags["tasks_per_node"] = _former_ranks(run_dir)
    return load_profile(args.cluster or "local", flags)


def _for_world(config: Config, world_size: int, run_dir: Path) -> Config:
    """The config for that many ranks: accumulation takes up the difference, so that clips and groups stay the same.

    Raises:
        UserError: the global batch cannot be shared out to so many; lists what fits.
    """
    from mmsada_hpc.methods import batch_layout

    values: dict[str, Any] = config.model_dump(mode="json")
    largest = max(1, config.train.global_batch // world_size)
    former = config.train.micro_batch or max(1, config.train.global_batch // (_former_ranks(run_dir) or world_size))
    first: UserError | None = None
    for micro_batch in range(min(former, largest), 0, -1):
        found = resolved(Config.model_validate(values), run_dir=run_dir, micro_batch=micro_batch)
        try:
            batch_layout(found, world_size)
        except UserError as error:
            first = first or error
        else:
            return found
    assert first is not None
    raise first


def _former_ranks(run_dir: Path) -> int | None:
    """Of the last start; None where there was none."""
    starts = read_record(run_dir)
    return int(starts[-1].get("world_size", 1)) if starts else None


def _snapshot(run_dir: Path, last: JobRecord) -> Path | None:
    if not last.code:
        return None
    path = Path(os.path.normpath(run_dir.absolute() / last.code))
    if not path.is_dir():
        raise UserError(f"{path}: the run's copy of its code is gone; --new-code takes the code as it is now")
    return path
