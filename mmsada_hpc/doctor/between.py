"""What only several ranks can see together: shared folder, names, clocks, and the speed of an all-reduce.

Every function here is called by all ranks in the same order; what goes wrong on one of them alone travels as a value,
so that no rank waits for one that has left.
"""

import contextlib
import os
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from mmsada_hpc.cluster.join import gather, say_to_all
from mmsada_hpc.cluster.world import World
from mmsada_hpc.doctor.folder import find
from mmsada_hpc.doctor.report import Ask, Line

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_GRADIENTS = 25_000_000
"""Of the two-stream I3D; as fp32, 100 MB are reduced at every step."""
_SMALL = 2_500_000
_LONGEST_S = 10.0
_TOKEN_S = 10.0
_CLOCK_S = 1.0
_MAX_NAMED = 4


@dataclass(frozen=True)
class Rank:
    """Who is where."""

    host: str
    is_first: bool
    """On its host."""
    has_gpu: bool


def between(world: World, ask: Ask) -> list[Line]:
    """All checks of this kind, on every rank; the lines are the same everywhere."""
    ranks = gather(world, Rank(world.host, world.local_rank == 0, _has_gpu()))
    lines = [_distinct(ranks)]
    if len({rank.host for rank in ranks}) > 1:
        lines += [_names(world, ranks), _token(world, ask, ranks), _clocks(world, ranks)]
    lines.append(_reduce(world, ask, "gloo"))
    if all(rank.has_gpu for rank in ranks):
        lines.append(_reduce(world, ask, "nccl"))
    return lines


def _distinct(ranks: Sequence[Rank]) -> Line:
    """Each host has one first rank: a name with two of them is two hosts that share it."""
    firsts = [rank.host for rank in ranks if rank.is_first]
    twice = sorted({host for host in firsts if firsts.count(host) > 1})
    if twice:
        remedy = "give every node a name of its own (hostnamectl set-hostname)"
        return Line("names", "fail", f"several nodes are called {_some(twice)}", remedy)
    return Line("names", "ok", f"{len(ranks)} ranks on {_some(firsts)}")


def _names(world: World, ranks: Sequence[Rank]) -> Line:
    """Whether every host finds every other by its name."""
    others = dict.fromkeys(rank.host for rank in ranks if rank.host != world.host)
    unknown = [host for host in others if not _resolves(host)]
    answers = gather(world, unknown)
    bad = [f"{rank.host} cannot find {_some(lost)}" for rank, lost in zip(ranks, answers, strict=True) if lost]
    if bad:
        remedy = "put every node into DNS or every /etc/hosts; until then set MASTER_ADDR to an address"
        return Line("name look-up", "fail", _some(list(dict.fromkeys(bad))), remedy)
    return Line("name look-up", "ok", "every node finds every other by its name")


def _resolves(host: str) -> bool:
    """To an address that is not the loopback's."""
    try:
        found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
    except OSError:
        return False
    return not any(str(entry[4][0]).startswith("127.") for entry in found)


def _token(world: World, ask: Ask, ranks: Sequence[Rank]) -> Line:
    """Rank 0 writes a word, every other reads it: the folder is one and the same."""
    folder, token, error = "", uuid.uuid4().hex, ""
    path = Path()
    if world.rank == 0:
        try:
            folder = str(find(Path(ask.folder)).folder)
            path = Path(folder) / f".mmsada-doctor-token-{token[:12]}"
            path.write_text(token)
        except OSError as problem:
            error = str(problem)
    folder, name, token, error = say_to_all((folder, path.name, token, error) if world.rank == 0 else None)
    try:
        answers = gather(world, not error and _reads(Path(folder) / name, token))
    finally:
        if world.rank == 0 and not error:
            with contextlib.suppress(OSError):  # told by the answers already
                path.unlink()
    blind = list(dict.fromkeys(rank.host for rank, saw in zip(ranks, answers, strict=True) if not saw))
    if error:
        return Line("shared folder", "fail", f"{ranks[0].host} cannot write: {error}", "--folder names another")
    if blind:
        what = f"{folder} of {ranks[0].host} is not what {_some(blind)} see{'s' * (len(blind) == 1)} under that name"
        remedy = "runs need a folder that is the same on every node: --folder (and run.dir) on a shared file system"
        return Line("shared folder", "fail", what, remedy)
    return Line("shared folder", "ok", f"what {ranks[0].host} writes to {folder} every node reads")


def _reads(path: Path, token: str) -> bool:
    """Network file systems show a new file after some seconds only."""
    deadline = time.monotonic() + _TOKEN_S
    while True:
        with contextlib.suppress(OSError):
            if path.read_text() == token:
                return True
        if time.monotonic() > deadline:
            return False
        os.listdir(path.parent) if path.parent.is_dir() else None  # makes NFS look again
        time.sleep(0.2)


def _clocks(world: World, ranks: Sequence[Rank]) -> Line:
    import torch.distributed as dist

    dist.barrier()
    times = gather(world, time.time())
    early, late = times.index(min(times)), times.index(max(times))
    skew = times[late] - times[early]
    if skew > _CLOCK_S:
        what = f"{ranks[late].host} is {skew:.1f} s ahead of {ranks[early].host}"
        return Line("clocks", "warn", what, "start chrony or ntpd: logs and heartbeats are told apart by time")
    return Line("clocks", "ok", "within {skew_s:.2f} s", seen={"skew_s": skew})


def _reduce(world: World, ask: Ask, backend: str) -> Line:
    """Add up gradients of the model's size, or a tenth of them where that takes long already."""
    with _group(world, ask, backend) as (group, device):
        small_s = _time(group, device, _SMALL, repeats=2)
        count = _GRADIENTS if max(gather(world, small_s)) * _GRADIENTS / _SMALL < _LONGEST_S else _SMALL
        took_s = max(gather(world, _time(group, device, count, repeats=2)))
    megabytes = 4 * count / 1e6
    speed = megabytes / took_s
    name = f"{backend} all-reduce"
    network = os.environ.get(f"{backend.upper()}_SOCKET_IFNAME", "the host name's interface")
    what = f"{megabytes:.0f} MB of gradients in {{ms:.0f}} ms ({{MB_per_s:.0f}} MB/s) over {network}"
    seen: dict[str, float | str] = {"ms": 1000 * took_s, "MB_per_s": speed}
    if speed < ask.floor_mb_s:
        remedy = (
            "is it the fast network (`interface:` in the profile, e.g. ib0)? Is the link shared, or at a lower speed"
            " (ethtool)? A larger batch needs fewer of them; --floor sets what is asked"
        )
        return Line(name, "fail", f"{what}: below the floor of {ask.floor_mb_s:.0f} MB/s", remedy, seen)
    return Line(name, "ok", what, seen=seen)


@contextlib.contextmanager
def _group(world: World, ask: Ask, backend: str) -> "Iterator[tuple[ProcessGroup | None, str]]":
    import torch
    import torch.distributed as dist

    if backend == "gloo":
        yield None, "cpu"
        return
    torch.cuda.set_device(world.local_rank)
    # Else NCCL's own thread ends the process after a time-out, and nothing would be told.
    os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"
    group = dist.new_group(backend=backend, timeout=timedelta(seconds=ask.patience_s))
    try:
        yield group, f"cuda:{world.local_rank}"
    finally:
        dist.destroy_process_group(group)


def _time(group: "ProcessGroup | None", device: str, count: int, *, repeats: int) -> float:
    """Seconds of the fastest one; all ranks begin together."""
    import torch
    import torch.distributed as dist

    gradients = torch.ones(count, device=device)
    times = []
    for _ in range(repeats):
        dist.barrier()
        begin = time.perf_counter()
        dist.all_reduce(gradients, group=group)
        gradients[:1].item()  # waits for a GPU
        times.append(time.perf_counter() - begin)
    expected = float(dist.get_world_size()) ** repeats
    if gradients[-1].item() != expected:
        raise RuntimeError(f"an all-reduce gave {gradients[-1].item()} where {expected} was right")
    return min(times)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available() and torch.distributed.is_nccl_available()


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more
