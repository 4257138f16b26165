"""DeepSpeed's stages beside plain DDP: one training step of the same network on every rank, how much of it is
communication, and what else an engine costs (comm_checks.py). comm_ways.py has the engines.
"""

import contextlib
import logging
import os
import statistics
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from mmsada_hpc.bench.comm_checks import Checks, Reference, check, held_bytes
from mmsada_hpc.bench.comm_ways import PLAIN, SILENT, Maker, Net, Way
from mmsada_hpc.bench.rows import SHOWN, Report, Row, interleaved, row
from mmsada_hpc.cluster.world import World


@dataclass(frozen=True)
class Shape:
    """The network and its clips."""

    name: str
    width: float
    frames: int
    side: int
    """Of a frame, pixels."""


SHAPES = {"small": Shape("small", 0.25, 8, 64), "i3d": Shape("i3d", 1.0, 16, 224)}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured."""

    shape: Shape
    clips: int
    """Of each rank."""
    precision: Literal["fp32", "bf16"]
    steps: int
    """A repeat is so many steps."""
    repeats: int
    engines: Sequence[str]
    """Of `comm_ways.NAMES`; what they are compared with is measured in any case."""


def bench_engines(world: World, plan: Plan, report: Report, *, device: str, hosts: int) -> None:
    """Measure all of them, alternately; rank 0 reports. Call it on every rank."""
    torch.manual_seed(0)
    net = Net(width=plan.shape.width, group_size=plan.clips).to(device)
    maker = Maker(net, _clips(plan, world.rank, device), plan.precision, world)
    with _quiet():
        reference = _reference(maker, plan, device) if world.rank == 0 else None
        for name in (PLAIN, *[n for n in plan.engines if n.startswith("DeepSpeed")][:1]):
            warm = maker.make(name)  # what is set up once in a process is of no engine
            warm.step()
            warm.close()
        ways, checks = dict[str, Way](), dict[str, Checks]()
        for name in dict.fromkeys((PLAIN, SILENT, *plan.engines)):
            before = held_bytes()
            ways[name] = maker.make(name)
            checks[name] = check(ways[name], world, reference, held_before=before)
        seconds = interleaved({n: partial(_time, way, plan.steps) for n, way in ways.items()}, plan.repeats)
        report.profile(ways[PLAIN].step, name="engines")
    slowest = {name: _slowest(values) for name, values in seconds.items()}
    if world.rank == 0:
        team = f"{world.size} ranks on {hosts} node{'s' * (hosts > 1)}"
        parameters = sum(p.numel() for p in net.parameters())
        for one in rows_of(slowest, ways, checks, plan, team=team, parameters=parameters):
            report.add(one)
    for way in ways.values():
        way.close()


def _reference(maker: Maker, plan: Plan, device: str) -> Reference:
    """One process that sees the clips of all ranks, in the ranks' batch-norm groups."""
    of_ranks = [_clips(plan, rank, device) for rank in range(maker.world.size)]
    return Reference(maker.alone([torch.cat(parts) for parts in zip(*of_ranks, strict=True)]))


def rows_of(
    seconds: Mapping[str, list[float]],
    ways: Mapping[str, Way],
    checks: Mapping[str, Checks],
    plan: Plan,
    *,
    team: str,
    parameters: int,
) -> list[Row]:
    """Milliseconds a step, plain DDP first; beside each, what of it a step without communication does not take."""
    shape, rows = plan.shape, list[Row]()
    size = f"{shape.name} {plan.precision} N={plan.clips} {shape.frames}x{shape.side}x{shape.side}"
    for name, values in seconds.items():
        ms = [1000 * value for value in values]
        exposed = statistics.median(ms) - 1000 * statistics.median(seconds[SILENT])
        bytes_each = 2 if ways[name].gradients == "bf16" else 4
        details = {
            "engine": name,
            "width": shape.width,
            "clips_per_rank": plan.clips,
            "precision": plan.precision,
            "team": team,
            "gradients": ways[name].gradients,
            "gradient_MB": parameters * bytes_each / 1e6,
            "memory_format": ways[name].memory_format,
            "interface": os.environ.get("GLOO_SOCKET_IFNAME", "the host name's interface"),
            **checks[name].details(),
            "exposed_ms": exposed,
            **({} if name == SILENT else {SHOWN: f"{exposed:+.3g} ms exposed"}),
        }
        baseline = next((one for one in rows if one.details["engine"] == PLAIN), None)
        rows.append(
            row("comm", f"{name}, {size}, {team}", ms, "ms", better="lower", baseline=baseline, details=details)
        )
    return rows


def _clips(plan: Plan, rank: int, device: str) -> tuple[Tensor, Tensor]:
    """RGB and flow of one rank, `(clips, T, H, W, 3 and 2)` in -1 ... 1; every rank's are others."""
    shape, generator = plan.shape, torch.Generator().manual_seed(rank)
    sizes = [(plan.clips, shape.frames, shape.side, shape.side, channels) for channels in (3, 2)]
    rgb_NTHWC, flow_NTHWC = (torch.rand(size, generator=generator).to(device) * 2 - 1 for size in sizes)
    return rgb_NTHWC, flow_NTHWC


def _time(way: Way, steps: int) -> float:
    """Seconds of a step; all ranks begin together."""
    dist.barrier()
    begin = time.perf_counter()
    for _ in range(steps):
        way.step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / steps


def _slowest(seconds: Sequence[float]) -> list[float]:
    most = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return [float(value) for value in most]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """DeepSpeed tells its whole config for every engine, DDP that one of its options has a new name and that it copies
    gradients of 1x1x1 convolutions.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("ignore", "Grad strides do not match")
            yield
    finally:
        logging.disable(before)
