"""`mmsada doctor`: this host, every node of an allocation, or N nodes of a cluster's queue."""

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from mmsada_hpc.cluster.join import gather, join, leave, set_patience
from mmsada_hpc.cluster.local import terminate_is_interrupt
from mmsada_hpc.cluster.profile import load_profile
from mmsada_hpc.cluster.world import World, find_world
from mmsada_hpc.doctor.report import Ask, Line, worst
from mmsada_hpc.doctor.runner import CHECKS, run_checks
from mmsada_hpc.doctor.show import Findings, show
from mmsada_hpc.doctor.slurm import room_to_save
from mmsada_hpc.doctor.srun import Launch, is_in_allocation, run_on_nodes
from mmsada_hpc.doctor.within import within
from mmsada_hpc.errors import UserError

_JOIN_S = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `mmsada doctor`."""
    ask = Ask()
    parser.add_argument("--nodes", type=int, metavar="N", help="run on N nodes: of this allocation, else of --cluster")
    parser.add_argument("--cluster", metavar="NAME", help="profile in configs/cluster or a YAML file, for the queue")
    parser.add_argument("--partition", help="Slurm partition to ask about, and to queue in")
    parser.add_argument("--wait", type=float, default=120.0, metavar="S", help="for the queue (default: 120 s)")
    parser.add_argument("--folder", default=ask.folder, help="where runs will lie (default: runs)")
    parser.add_argument("--floor", type=float, default=ask.floor_mb_s, metavar="MB/S", help="all-reduce (default: 100)")
    parser.add_argument("--checkpoint-mb", type=float, default=ask.checkpoint_mb, help="size (default: 300)")
    parser.add_argument("--patience", type=float, default=ask.patience_s, metavar="S", help="a check (default: 60 s)")
    parser.add_argument("--skip", default="", metavar="A,B", help=f"checks to leave out: {', '.join(CHECKS)}")
    parser.add_argument("--json", action="store_true", help="one JSON object: hosts, each a list of lines")


def run(args: argparse.Namespace) -> int:
    """Print what was found; 1 where something failed."""
    names = _names(args.skip)
    if args.nodes is not None and args.nodes < 1:
        raise UserError(f"--nodes {args.nodes}: one or more")
    with terminate_is_interrupt():
        findings = _through_srun(args) if _wants_srun(args) else _here(args, names)
    if findings is None:
        return 0
    if args.json:
        print(findings.to_json(), flush=True)
    else:
        show(findings, sys.stdout)
        _hint(args)
    if findings.is_cut_off:
        sys.stdout.flush()
        os._exit(findings.exit_code)  # a thread may be stuck in a collective, and would keep the process
    return findings.exit_code


def _hint(args: argparse.Namespace) -> None:
    """In an allocation of several nodes, that this was one of them."""
    nodes = os.environ.get("SLURM_JOB_NUM_NODES", "1")
    if is_in_allocation(os.environ) and args.nodes is None and nodes != "1":
        print(f"this was one host alone: --nodes {nodes} runs on all of the allocation, and measures between them")


def _names(skip: str) -> list[str]:
    left_out = [word for word in skip.split(",") if word]
    unknown = [word for word in left_out if word not in CHECKS]
    if unknown:
        raise UserError(f"--skip {', '.join(unknown)}: not one of {', '.join(CHECKS)}")
    return [name for name in CHECKS if name not in left_out]


def _wants_srun(args: argparse.Namespace) -> bool:
    if "SLURM_STEP_ID" in os.environ or args.nodes is None:
        return False
    if not is_in_allocation(os.environ) and args.cluster is None:
        if args.nodes == 1:
            return False
        raise UserError(
            f"--nodes {args.nodes}: not in a Slurm allocation; name a profile by --cluster, or run it inside salloc"
        )
    return True


def _through_srun(args: argparse.Namespace) -> Findings:
    profile = None
    if not is_in_allocation(os.environ):
        profile = load_profile(args.cluster, {"partition": args.partition, "nodes": args.nodes})
        if profile.executor != "slurm":
            raise UserError(f"--cluster {args.cluster}: several nodes need a profile with executor: slurm")
    words = ["--json", "--folder", str(Path(args.folder).absolute())]
    words += ["--floor", str(args.floor), "--checkpoint-mb", str(args.checkpoint_mb), "--patience", str(args.patience)]
    words += ["--partition", args.partition] if args.partition else []
    words += ["--skip", args.skip] if args.skip else []
    run_s = args.patience * len(CHECKS) + 2 * _JOIN_S
    return run_on_nodes(Launch(nodes=args.nodes, words=words, profile=profile, wait_s=args.wait, run_s=run_s))


def _here(args: argparse.Namespace, names: Sequence[str]) -> Findings | None:
    """This process: alone, or one of several."""
    # A batch script of several tasks is one process, and may look at its own host.
    alone = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    world = find_world(alone if is_in_allocation(os.environ) else None)
    ask = Ask(
        folder=args.folder,
        nodes=1 if world.is_one_host else world.size // world.local_size,
        partition=args.partition,
        checkpoint_mb=args.checkpoint_mb,
        floor_mb_s=args.floor,
        patience_s=args.patience,
    )
    if world.size == 1:
        return Findings({world.host: _of_this_host(names, ask)})
    return _together(world, names, ask)


def _of_this_host(names: Sequence[str], ask: Ask) -> list[Line]:
    lines = run_checks(names, ask)
    return lines + room_to_save(lines, ask.checkpoint_mb)


def _together(world: World, names: Sequence[str], ask: Ask) -> Findings | None:
    """Rank 0's findings of all; of every rank that cannot reach the others, its own."""
    # Where the network is set wrongly nobody can be joined: that is told at once.
    first = run_checks([name for name in names if name == "network"], ask) if world.local_rank == 0 else []
    if ask.nodes > 1 and worst(first) == "fail":
        return _cut_off(world, names, ask, first, "not tried, as its network is set up wrongly")
    try:
        return _gathered(world, names, ask, first)
    except (RuntimeError, TimeoutError, UserError) as error:
        return _cut_off(world, names, ask, first, " ".join(str(error).split())[:300])


def _gathered(world: World, names: Sequence[str], ask: Ask, lines: list[Line]) -> Findings | None:
    # gloo keeps to no time-out while it connects (torch 2.13: a rank whose peer had given up waited on).
    world = within(1.5 * _JOIN_S, lambda: join(world, timeout=timedelta(seconds=_JOIN_S)), what="joining the others")
    patience = ask.patience_s * len(CHECKS) + _JOIN_S
    set_patience(timedelta(seconds=patience))
    if world.local_rank == 0:
        lines += run_checks([name for name in names if name != "network"], ask)
        lines += room_to_save(lines, ask.checkpoint_mb)
    hosts, found = within(2 * patience, lambda: _compared(world, ask, lines), what="the others' answers")
    leave()
    return Findings(hosts, found) if world.rank == 0 else None


def _compared(world: World, ask: Ask, lines: list[Line]) -> tuple[dict[str, list[Line]], list[Line]]:
    from mmsada_hpc.doctor.between import between

    everyone = gather(world, (world.host, lines))
    return {host: said for host, said in everyone if said}, between(world, ask)


def _cut_off(world: World, names: Sequence[str], ask: Ask, lines: list[Line], why: str) -> Findings | None:
    """What this host alone can say, and that it is alone."""
    if world.local_rank:
        return None
    if all(line.name in ("host name", "interface") for line in lines):
        lines = lines + _of_this_host([name for name in names if name != "network"], ask)
    remedy = "see host name and interface above; a firewall between the nodes? `interface:` in the profile"
    line = Line("between nodes", "fail", f"{{host}} is cut off: {why}", remedy, {"host": world.host})
    return Findings({world.host: lines}, [line], is_cut_off=True)
