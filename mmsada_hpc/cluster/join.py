"""Come together before the engine starts: agree on an address, start the process group, compare what must be equal.

The engine finds a complete environment and a running process group, so DeepSpeed never goes looking for MPI itself.
"""

import os
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from mmsada_hpc.cluster.host import end_process
from mmsada_hpc.cluster.world import LOOPBACK, World
from mmsada_hpc.errors import UserError

if TYPE_CHECKING:
    import torch
    from mpi4py import MPI

T = TypeVar("T")

# Beyond what a start may take before a process that still waits is ended.
_MARGIN = timedelta(seconds=5)

_exported: list[str] = []


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def join(
    world: World,
    *,
    backend: str = "gloo",
    timeout: timedelta = timedelta(minutes=30),
    alarm: Callable[[str], None] = _to_stderr,
) -> World:
    """Start torch's process group, also for one process.

    Args:
        world: from `find_world`.
        backend: gloo, or `cpu:gloo,cuda:nccl` where each rank has a GPU.
        timeout: of this call and of every collective of the group. Long enough for the slowest rank's start.
        alarm: says why this process is ended, where the library does not come back.

    Returns:
        The world with its master address and port filled in.

    Raises:
        UserError: not all ranks came within `timeout`, or MPI sees another world.
    """
    import torch.distributed as dist

    _compare_with_mpi(world)
    world = agree_on_master(_with_topology(world))
    _export(world)
    with _given_up_after(timeout + _MARGIN, world, alarm):
        try:
            dist.init_process_group(backend, timeout=timeout, init_method="env://")
        except RuntimeError as error:  # the store's and the network's errors are some; gloo's own has no class
            raise UserError(_who_is_missing(world, timeout, str(error))) from error
    return world


@contextmanager
def _given_up_after(timeout: timedelta, world: World, alarm: Callable[[str], None]) -> Iterator[None]:
    """Gloo that finds the address of a peer but no way to it (a wrong interface) does not keep to its own time-out."""

    def give_up() -> None:
        alarm(f"error: {_who_is_missing(world, timeout, 'gloo is still connecting')}")
        end_process(1)

    timer = threading.Timer(timeout.total_seconds(), give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def leave() -> None:
    """Undo `join` at the end of a run that went well.

    Not for the way out of a failure: MPI_Finalize waits for ranks that may never come, whereas mpiexec ends all of
    them when one exits without it.
    """
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
    while _exported:
        os.environ.pop(_exported.pop(), None)
    _finalize_mpi()


def agree_on_master(world: World) -> World:
    """Fill in what is missing of the master's address; under mpiexec rank 0 takes a free port and tells the others."""
    if world.master_addr is not None and world.master_port is not None:
        return world
    if world.size == 1:
        return replace(world, master_addr=world.master_addr or LOOPBACK, master_port=world.master_port or _free_port())
    addr, port = _mpi(world).bcast(_own_address(world) if world.rank == 0 else None, root=0)
    return replace(world, master_addr=addr, master_port=port)


def agree(world: World, value: str, *, what: str) -> None:
    """Compare one string over all ranks, before anything is computed with it.

    Args:
        value: for instance a hash of the config.
        what: its name in the message.

    Raises:
        UserError: on every rank, with the same message, which names the ranks that differ.
    """
    if world.size == 1:
        return
    answers = gather(world, (value, world.host))
    values = [answer[0] for answer in answers]
    if len(set(values)) > 1:
        _finalize_mpi()  # safe here, since every rank takes this way out, and mpiexec then reports no crash
        raise UserError(_who_differs(answers, what))


def say_to_all(item: T | None) -> T:
    """What rank 0 says, on every rank; the others give None. Not inside a signal handler."""
    import torch.distributed as dist

    said = [item]
    if dist.is_initialized():
        dist.broadcast_object_list(said, src=0, device=torch_cpu())
    assert said[0] is not None
    return said[0]


def set_patience(timeout: timedelta) -> None:
    """How long every later collective waits for the other ranks: long until the first update, short after it (D28)."""
    from torch.distributed import distributed_c10d

    distributed_c10d._set_pg_timeout(timeout, distributed_c10d._get_default_group())


def torch_cpu() -> "torch.device":
    """Objects travel by gloo, also beside NCCL."""
    import torch

    return torch.device("cpu")


def gather(world: World, item: T) -> list[T]:
    """Every rank's item, by rank, on every rank; by MPI where mpiexec started us, else by the process group."""
    if world.size == 1:
        return [item]
    if world.launcher == "mpiexec":
        return _mpi(world).allgather(item)
    import torch.distributed as dist

    assert dist.is_initialized(), "gather() comes after join()"
    answers: list[T | None] = [None] * world.size
    dist.all_gather_object(answers, item)
    return [answer for answer in answers if answer is not None]


def _who_differs(answers: Sequence[tuple[str, str]], what: str) -> str:
    common, count = Counter(value for value, _ in answers).most_common(1)[0]
    odd = [f"rank {rank} on {host} has {value}" for rank, (value, host) in enumerate(answers) if value != common]
    more = f" and {len(odd) - 4} more" if len(odd) > 4 else ""
    return (
        f"{what} is not the same on all ranks: {count} of {len(answers)} have {common}, but {', '.join(odd[:4])}{more}"
    )


def _who_is_missing(world: World, timeout: timedelta, said: str) -> str:
    where = f"{world.master_addr}:{world.master_port}"
    first = said.strip().partition("\n")[0]
    return (
        f"rank {world.rank} of {world.size} on {world.host} ({world.launcher}) could not join the others at {where}"
        f" within {timeout.total_seconds():.0f} s: is every rank running, can the hosts reach each other,"
        f" is the port free (MASTER_PORT sets another), GLOO_SOCKET_IFNAME right? ({first})"
    )


def _export(world: World) -> None:
    """Everything an engine looks for, before it starts (where one is missing, DeepSpeed goes and asks MPI)."""
    values = {
        "RANK": str(world.rank),
        "WORLD_SIZE": str(world.size),
        "LOCAL_RANK": str(world.local_rank),
        "LOCAL_WORLD_SIZE": str(world.local_size),
        "MASTER_ADDR": str(world.master_addr),
        "MASTER_PORT": str(world.master_port),
    }
    # A host name that resolves to an unreachable address is the usual way for gloo to fail on one machine.
    if world.is_one_host and "lo" in (name for _, name in socket.if_nameindex()):
        values["GLOO_SOCKET_IFNAME"] = "lo"
    for name, value in values.items():
        if name not in os.environ:
            os.environ[name] = value
            _exported.append(name)


def _own_address(world: World) -> tuple[str, int]:
    return (world.master_addr or (LOOPBACK if world.is_one_host else world.host), world.master_port or _free_port())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _mpi(world: World) -> "MPI.Intracomm":
    """MPI's world, started on first use; for the host side only, as it is not fork safe and must not meet NCCL."""
    import mpi4py

    mpi4py.rc.initialize = False
    mpi4py.rc.finalize = False
    from mpi4py import MPI

    if not MPI.Is_initialized():
        MPI.Init_thread(MPI.THREAD_SERIALIZED)
    _compare_with_mpi(world)
    return MPI.COMM_WORLD


def _compare_with_mpi(world: World) -> None:
    """MPI, where anybody has started it, sees the same world; never imports it."""
    if "mpi4py.MPI" not in sys.modules:
        return
    from mpi4py import MPI

    if not MPI.Is_initialized() or MPI.Is_finalized():
        return
    rank, size = MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size()
    if (rank, size) != (world.rank, world.size):
        library = MPI.Get_library_version().splitlines()[0].strip()
        raise UserError(
            f"{world.launcher} says rank {world.rank} of {world.size}, mpi4py sees rank {rank} of {size}: mpi4py's MPI "
            f"({library}) was not started by {world.launcher}; use the mpiexec of that MPI, or srun with a --mpi that "
            f"it understands"
        )


def _with_topology(world: World) -> World:
    """Under mpiexec, which rank on its host this is as MPI itself sees it: launchers may leave that out."""
    if world.launcher != "mpiexec" or world.size == 1:
        return world
    from mpi4py import MPI

    shared = _mpi(world).Split_type(MPI.COMM_TYPE_SHARED)
    try:
        return replace(world, local_rank=shared.Get_rank(), local_size=shared.Get_size())
    finally:
        shared.Free()


def _finalize_mpi() -> None:
    """End MPI where `_mpi` started it; never imports it."""
    if "mpi4py.MPI" not in sys.modules:
        return
    from mpi4py import MPI

    if MPI.Is_initialized() and not MPI.Is_finalized():
        MPI.Finalize()
