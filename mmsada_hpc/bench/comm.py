"""`mmsada bench comm`: what the ranks' talking costs, by message and as part of a training step."""

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mmsada_hpc.bench.rows import Report
from mmsada_hpc.cluster.join import gather
from mmsada_hpc.cluster.world import World, find_world
from mmsada_hpc.errors import UserError

if TYPE_CHECKING:
    from mpi4py import MPI

HELP = (
    "All-reduce of fp32 messages over torch's process group (gloo, and NCCL where each rank has a GPU) and over MPI, "
    "between all ranks, and on several nodes also between one rank of each and inside one node; then a training step "
    "by plain DDP and by DeepSpeed. Alone it starts its own ranks; on a cluster: "
    "launch/submit.py bench --nodes N comm, or srun mmsada bench comm inside a job."
)
PARTS = ("all-reduce", "engines")
_LONGEST_S, _PATIENCE_S = 3600.0, 10.0
# The ranks are on this host, whatever job or user this is.
_HERE = {"HYDRA_LAUNCHER": "fork", "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mmsada bench comm`."""
    parser.add_argument("--part", choices=PARTS, help="only this (default: both)")
    parser.add_argument(
        "--sizes", nargs="+", type=parse_size, metavar="SIZE", help="messages: bytes or 32K, 4M (default: 32K to 256M)"
    )
    parser.add_argument("--no-mpi", action="store_true", help="all-reduce over torch's process group alone")
    parser.add_argument(
        "--ranks", type=int, default=2, metavar="N", help="started here, when alone (default %(default)s)"
    )
    parser.add_argument(
        "--model", choices=("small", "i3d"), default="small", help="i3d is the two-stream I3D at full size"
    )
    parser.add_argument("--clips", type=int, default=4, metavar="N", help="of each rank and step (default %(default)s)")
    parser.add_argument(
        "--engines",
        nargs="+",
        metavar="NAME",
        help="of the step, such as DDP or 'DeepSpeed stage 0 overlap'; all = every one there is, also with gradients "
        "in the other precision (default: as training runs them)",
    )
    parser.add_argument("--steps", type=int, metavar="N", help="of a repeat (default: 5; 1 for i3d and for --quick)")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="of the step (default %(default)s)"
    )


def parse_size(text: str) -> int:
    """`32K` -> 32768; a whole number of fp32."""
    match = re.fullmatch(r"(\d+)([KMG]?)", text.upper().removesuffix("IB").removesuffix("B"))
    size = int(match[1]) * _UNITS[match[2]] if match else 0
    if size < 4 or size % 4:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: bytes in fours, or 32K, 4M")
    return size


def run(args: argparse.Namespace, report: Report) -> None:
    """On every rank; alone, start `--ranks` of them here and take over their rows."""
    for name in ("ranks", "clips", "steps"):
        value = getattr(args, name)
        if value is not None and value < 1 + (name == "ranks"):
            raise UserError(f"--{name} must be at least {1 + (name == 'ranks')}")
    if args.engines:
        find_engines(args.engines, args.precision)
    world = find_world()
    if world.size == 1:
        _start_ranks(args, report)
    else:
        _measure(args, report, world)


def _measure(args: argparse.Namespace, report: Report, world: World) -> None:
    import torch
    import torch.distributed as dist

    from mmsada_hpc.bench import comm_engines, comm_reduce
    from mmsada_hpc.cluster.host import keep_freed_memory, set_threads

    keep_freed_memory()
    threads = set_threads(world.local_size, cpus_per_task=world.cpus_per_task)
    hosts = gather(world, world.host)
    by_host = comm_reduce.ranks_by_host(hosts)
    where = "; ".join(f"{host} has rank{'s' * (len(r) > 1)} {', '.join(map(str, r))}" for host, r in by_host.items())
    print(f"{world.size} ranks by {world.launcher}, {threads} threads each: {where}", flush=True)
    device = f"cuda:{torch.cuda.current_device()}" if "nccl" in str(dist.get_backend_config()) else "cpu"
    if args.part != "engines":
        mpi, why = (None, "--no-mpi") if args.no_mpi else find_mpi(world)
        if mpi is None:
            print(f"MPI is not measured: {why}", flush=True)
        sizes = args.sizes or (comm_reduce.QUICK_SIZES if args.quick else comm_reduce.SIZES)
        plan = comm_reduce.Plan(sizes=sizes, repeats=args.repeats, at_least_s=0.02 if args.quick else 0.1)
        for team in comm_reduce.make_teams(hosts):
            comm_reduce.bench_team(world, team, plan, report, device=device, mpi=mpi)
    if args.part != "all-reduce":
        engines = comm_engines.Plan(
            shape=comm_engines.SHAPES[args.model],
            clips=args.clips,
            precision=args.precision,
            steps=args.steps or (1 if args.quick or args.model == "i3d" else 5),
            repeats=args.repeats,
            engines=find_engines(args.engines, args.precision),
        )
        comm_engines.bench_engines(world, engines, report, device=device, hosts=len(by_host))


def find_engines(names: Sequence[str] | None, precision: Literal["fp32", "bf16"]) -> tuple[str, ...]:
    """Those that `--engines` names.

    Raises:
        UserError: there is none of that name; gives all.
    """
    from mmsada_hpc.bench import comm_ways

    if not names:
        return comm_ways.USUAL
    if list(names) == ["all"]:
        return comm_ways.every(precision)
    for name in names:
        if name not in comm_ways.NAMES:
            raise UserError(f"--engines {name!r}: no such engine; all, or some of {', '.join(comm_ways.NAMES)}")
    return tuple(names)


def find_mpi(world: World) -> "tuple[MPI.Intracomm | None, str]":
    """MPI's world where it is the same as ours on every rank, else why it is not used."""
    import mpi4py

    mpi4py.rc.initialize = False
    mpi4py.rc.finalize = False
    from mpi4py import MPI

    if not MPI.Is_initialized():
        MPI.Init_thread(MPI.THREAD_SERIALIZED)
    comm = MPI.COMM_WORLD
    odd = [f"rank {world.rank} of {world.size} is {comm.Get_rank()} of {comm.Get_size()} to mpi4py"]
    found = [one for of_rank in gather(world, odd if _differs(comm, world) else []) for one in of_rank]
    if not found:
        return comm, ""
    return None, f"{found[0]} ({world.launcher} did not start its MPI); use the mpiexec of mpi4py's MPI"


def _differs(comm: "MPI.Intracomm", world: World) -> bool:
    return (comm.Get_rank(), comm.Get_size()) != (world.rank, world.size)


def _start_ranks(args: argparse.Namespace, report: Report) -> None:
    """The same command under mpiexec; what its rank 0 prints is seen here, its rows become ours."""
    from mmsada_hpc.doctor.mpi import find_mpiexec

    mpiexec = find_mpiexec()
    if mpiexec is None:
        raise UserError("no mpiexec found: install the extra mpi, or start the ranks by srun or torchrun")
    with tempfile.TemporaryDirectory(prefix="mmsada-bench-") as folder:
        rows = Path(folder) / "rows.jsonl"
        words = [str(mpiexec), "-n", str(args.ranks), sys.executable, "-m", "mmsada_hpc.cli", *_words(args, rows)]
        print(f"alone here, so {args.ranks} ranks are started by {mpiexec.name}", flush=True)
        code = run_group(words, {**os.environ, **_HERE}, longest_s=_LONGEST_S)
        if code is None:
            raise UserError(f"the {args.ranks} ranks did not end within {_LONGEST_S:.0f} s")
        if code:
            raise UserError(f"the {args.ranks} ranks ended with code {code}; what they said is above")
        report.adopt([json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()])


def run_group(words: Sequence[str], environ: Mapping[str, str], *, longest_s: float) -> int | None:
    """The exit code of a command, or None where it took longer. Where it is not waited for to its end, for whatever
    reason, its whole process group is ended.
    """
    group = subprocess.Popen(words, env=environ, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        return group.wait(longest_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if group.poll() is None:
            _end_group(group)


def _end_group(group: "subprocess.Popen[bytes]") -> None:
    """First politely, so that mpiexec ends what it started."""
    for number, patience_s in ((signal.SIGTERM, _PATIENCE_S), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):  # nobody is left
            os.killpg(group.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            group.wait(patience_s)


def _words(args: argparse.Namespace, rows: Path) -> list[str]:
    words = ["bench", "comm", "--json", str(rows), "--repeats", str(args.repeats), "--model", args.model]
    words += ["--clips", str(args.clips), "--precision", args.precision]
    words += ["--quick"] if args.quick else []
    words += ["--steps", str(args.steps)] if args.steps else []
    words += ["--no-mpi"] if args.no_mpi else []
    words += ["--engines", *args.engines] if args.engines else []
    words += ["--part", args.part] if args.part else []
    words += ["--profile", str(args.profile)] if args.profile else []
    return [*words, *(["--sizes", *map(str, args.sizes)] if args.sizes else [])]
