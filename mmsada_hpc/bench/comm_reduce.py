"""All-reduce of messages of some sizes, over torch's process group and over MPI, among teams of the ranks."""

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import torch.distributed as dist

from mmsada_hpc.bench.rows import SHOWN, Report, Row, row
from mmsada_hpc.cluster.join import gather
from mmsada_hpc.cluster.world import World

if TYPE_CHECKING:
    from mpi4py import MPI

KIB, MIB = 1 << 10, 1 << 20
SIZES = tuple(size * KIB for size in (32, 128, 512, 2048, 8192, 32768, 131072, 262144))
QUICK_SIZES = (32 * KIB, 2 * MIB)
_MOST_CALLS = 200


@dataclass(frozen=True)
class Team:
    """Ranks that reduce together."""

    ranks: tuple[int, ...]
    num_hosts: int

    @property
    def name(self) -> str:
        """`4 ranks on 2 nodes`."""
        return f"{len(self.ranks)} ranks on {self.num_hosts} node{'s' * (self.num_hosts > 1)}"


def make_teams(hosts: Sequence[str]) -> list[Team]:
    """All ranks; on several hosts also one rank of each, and those of one host. `hosts` is each rank's, by rank."""
    by_host = ranks_by_host(hosts)
    found = [Team(tuple(range(len(hosts))), len(by_host))]
    if len(by_host) > 1 and len(by_host) < len(hosts):
        found.append(Team(tuple(sorted(ranks[0] for ranks in by_host.values())), len(by_host)))
        found.append(Team(next(tuple(ranks) for ranks in by_host.values() if len(ranks) > 1), 1))
    return found


def ranks_by_host(hosts: Sequence[str]) -> dict[str, list[int]]:
    """Which ranks share a host."""
    found: dict[str, list[int]] = {}
    for rank, host in enumerate(hosts):
        found.setdefault(host, []).append(rank)
    return found


class Way(Protocol):
    """One library's all-reduce of fp32 among the ranks of a team, on buffers that it makes."""

    name: str
    details: Mapping[str, Any]

    def buffer(self, count: int, value: float) -> Any:
        """`count` numbers, all `value`."""

    def reduce(self, buffer: Any) -> None:
        """Add up in place; may return before it is done."""

    def wait(self, buffer: Any) -> None:
        """Until it is done."""

    def barrier(self) -> None:
        """Until every rank of the team is here."""


class TorchWay:
    """A process group: gloo for tensors on the host, NCCL for those of a GPU."""

    def __init__(self, team: Team, device: str) -> None:
        self._device = torch.device(device)
        self.group = dist.new_group(list(team.ranks))
        self.name = "gloo" if self._device.type == "cpu" else "nccl"
        network = os.environ.get(f"{self.name.upper()}_SOCKET_IFNAME", "the host name's interface")
        self.details = {"device": self._device.type, "interface": network}

    def buffer(self, count: int, value: float) -> torch.Tensor:
        return torch.full((count,), value, device=self._device)

    def reduce(self, buffer: torch.Tensor) -> None:
        dist.all_reduce(buffer, group=self.group)

    def wait(self, buffer: torch.Tensor) -> None:
        buffer[:1].item()

    def barrier(self) -> None:
        self.wait(ready := self.buffer(1, 1.0))
        self.reduce(ready)
        self.wait(ready)

    def close(self) -> None:
        """Free the group; on every rank of it."""
        dist.destroy_process_group(self.group)


class MpiWay:
    """mpi4py's Allreduce of NumPy arrays, in place."""

    name = "MPI"

    def __init__(self, team: Team, world: "MPI.Intracomm") -> None:
        from mpi4py import MPI

        self._comm = world.Create_group(world.group.Incl(list(team.ranks)))
        self._in_place: Any = MPI.IN_PLACE
        self.details = {
            "device": "cpu",
            "library": " ".join(MPI.Get_library_version().split("\n")[0].strip("\0").split()),
        }

    def buffer(self, count: int, value: float) -> Any:
        return np.full(count, value, np.float32)

    def reduce(self, buffer: Any) -> None:
        self._comm.Allreduce(self._in_place, buffer)

    def wait(self, buffer: Any) -> None:
        """Allreduce returns when it is done."""

    def barrier(self) -> None:
        self._comm.Barrier()

    def close(self) -> None:
        """Free the communicator."""
        self._comm.Free()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured."""

    sizes: Sequence[int]
    """Bytes of a message."""
    repeats: int
    at_least_s: float
    """A repeat is so many calls as take about this long."""


def bench_team(
    world: World, team: Team, plan: Plan, report: Report, *, device: str, mpi: "MPI.Intracomm | None"
) -> None:
    """Every size over every library, alternately; rank 0 reports. Call it on every rank, also on those not in the team.

    Args:
        device: of this rank; with a GPU (cuda:0) NCCL is measured beside gloo.
        mpi: MPI's world; None = not measured.
    """
    hosts, is_in = gather(world, world.host), world.rank in team.ranks
    # Every rank has a part in making a group. The first way is what the others are compared with.
    groups = [TorchWay(team, name) for name in dict.fromkeys(("cpu", device))]
    ways: list[Any] = [*([MpiWay(team, mpi)] if mpi is not None and is_in else []), *groups]
    for size in plan.sizes:
        times = _times(ways, team, size, plan, groups[0].group) if is_in else []
        dist.barrier()  # whoever is not in the team waits here, where it takes no core
        found = gather(world, times)[team.ranks[0]]
        if world.rank == 0:
            for one in rows_of(found, size, team, hosts=hosts):
                report.add(one)
    for way in ways if is_in else ():
        way.close()


@dataclass(frozen=True)
class Times:
    """One library, one size."""

    way: str
    seconds: list[float]
    """Of one call, of the slowest rank, by repeat."""
    calls: int
    details: Mapping[str, Any]


def _times(ways: Sequence[Any], team: Team, size: int, plan: Plan, group: Any) -> list[Times]:
    buffers = [_checked(way, team, size // 4) for way in ways]
    calls = []
    for way, buffer in zip(ways, buffers, strict=True):
        once_s = min(_slowest([_time(way, buffer, 1) for _ in range(2)], group))
        calls.append(max(1, min(_MOST_CALLS, round(plan.at_least_s / once_s))))
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(plan.repeats):
        for k, way in enumerate(ways):
            seconds[k].append(_time(way, buffers[k], calls[k]))
    return [Times(w.name, _slowest(seconds[k], group), calls[k], dict(w.details)) for k, w in enumerate(ways)]


def _checked(way: Way, team: Team, count: int) -> Any:
    """A buffer of zeros that has gone through one all-reduce, whose sum was right."""
    buffer = way.buffer(count, float(dist.get_rank() + 1))
    way.reduce(buffer)
    way.wait(buffer)
    found, expected = (float(buffer.min()), float(buffer.max())), float(sum(rank + 1 for rank in team.ranks))
    if found != (expected, expected):
        raise RuntimeError(f"{way.name}: an all-reduce of {4 * count} bytes gave {found} where {expected} was right")
    buffer[:] = 0.0
    return buffer


def _time(way: Way, buffer: Any, calls: int) -> float:
    """Seconds of one of `calls` all-reduces after another; all ranks begin together."""
    way.barrier()
    begin = time.perf_counter()
    for _ in range(calls):
        way.reduce(buffer)
    way.wait(buffer)
    return (time.perf_counter() - begin) / calls


def _slowest(seconds: Sequence[float], group: Any) -> list[float]:
    """Of the team's ranks, for each repeat: the same figures on all of them."""
    most = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(most, op=dist.ReduceOp.MAX, group=group)
    return [float(value) for value in most]


def rows_of(found: Sequence[Times], size: int, team: Team, *, hosts: Sequence[str]) -> list[Row]:
    """Milliseconds, with the bandwidths beside them: algbw = bytes / time, busbw = algbw * 2 (n - 1) / n, which is what
    each link must have carried, and so comparable between numbers of ranks.
    """
    rows: list[Row] = []
    for times in found:
        ms = [1000 * s for s in times.seconds]
        algbw = size / statistics.median(times.seconds) / 1e9
        busbw = algbw * 2 * (len(team.ranks) - 1) / len(team.ranks)
        details = {
            **times.details,
            "way": times.way,
            "bytes": size,
            "dtype": "float32",
            "team": team.name,
            "ranks": list(team.ranks),
            "hosts": [hosts[rank] for rank in team.ranks],
            "calls_per_repeat": times.calls,
            "algbw_GB_s": algbw,
            "busbw_GB_s": busbw,
            SHOWN: f"algbw {algbw:.3g} busbw {busbw:.3g} GB/s",
        }
        name = f"{times.way} all-reduce {words_of(size)}, {team.name}"
        plain = rows[0] if rows else None
        rows.append(row("comm", name, ms, "ms", better="lower", baseline=plain, details=details))
    return rows


def words_of(size: int) -> str:
    """`32 KiB`, `2 MiB`, `1000 B`."""
    for unit, name in ((MIB, "MiB"), (KIB, "KiB")):
        if size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"
