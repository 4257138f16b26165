"""DeepSpeed's stages 0 and 1, with and without `overlap_comm`, beside plain DDP: one training step of the same network
on every rank, and how much of it is communication.
"""

import contextlib
import copy
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmsada_hpc.bench.rows import SHOWN, Report, Row, interleaved, row
from mmsada_hpc.cluster.world import World
from mmsada_hpc.config import TrainConfig
from mmsada_hpc.data.layout import BatchLayout
from mmsada_hpc.model.streams import MultiStream, use_ndhwc_weights
from mmsada_hpc.train.engine import deepspeed_config

PLAIN = "DDP"
SILENT = "DDP without communication"
_LR, _MOMENTUM = 1e-6, 0.9
_STAGES: tuple[Literal[0], Literal[1]] = (0, 1)


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


@dataclass(frozen=True)
class Engine:
    """One way to train, ready to step."""

    step: Callable[[], None]
    close: Callable[[], None]
    gradients: str
    """What they travel in."""
    memory_format: str


class _Net(nn.Module):
    """Both streams, and a number to differentiate: every parameter of theirs has a gradient."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.network = MultiStream(width=plan.shape.width, group_size=plan.clips, test_statistics="mixture")

    def forward(self, rgb_NTHWC: Tensor, flow_NTHWC: Tensor) -> Tensor:
        features = self.network({"rgb": rgb_NTHWC, "flow": flow_NTHWC})
        return torch.stack([x_ND.float().square().mean() for x_ND in features.values()]).sum()


def bench_engines(world: World, plan: Plan, report: Report, *, device: str, hosts: int) -> None:
    """Measure all of them, alternately; rank 0 reports. Call it on every rank."""
    torch.manual_seed(0)
    net = _Net(plan).to(device)
    clips = tuple(_clips(plan, channels, device) for channels in (3, 2))
    with _quiet():
        engines = {name: make() for name, make in _ways(net, clips, plan, world).items()}
        for engine in engines.values():
            engine.step()  # warm
        seconds = interleaved({n: partial(_time, e, plan.steps) for n, e in engines.items()}, plan.repeats)
        report.profile(engines[PLAIN].step, name="engines")
    slowest = {name: _slowest(values) for name, values in seconds.items()}
    if world.rank == 0:
        team = f"{world.size} ranks on {hosts} node{'s' * (hosts > 1)}"
        for one in rows_of(slowest, engines, plan, team=team, gradients=sum(p.numel() for p in net.parameters())):
            report.add(one)
    for engine in engines.values():
        engine.close()


def rows_of(
    seconds: dict[str, list[float]], engines: dict[str, Engine], plan: Plan, *, team: str, gradients: int
) -> list[Row]:
    """Milliseconds a step, plain DDP first; beside each, what of it a step without communication does not take."""
    shape, rows = plan.shape, list[Row]()
    size = f"{shape.name} {plan.precision} N={plan.clips} {shape.frames}x{shape.side}x{shape.side}"
    for name, values in seconds.items():
        ms = [1000 * value for value in values]
        exposed = statistics.median(ms) - 1000 * statistics.median(seconds[SILENT])
        bytes_each = 2 if engines[name].gradients == "bf16" else 4
        details = {
            "engine": name,
            "width": shape.width,
            "clips_per_rank": plan.clips,
            "team": team,
            "gradients": engines[name].gradients,
            "gradient_MB": gradients * bytes_each / 1e6,
            "memory_format": engines[name].memory_format,
            "exposed_ms": exposed,
            **({} if name == SILENT else {SHOWN: f"{exposed:+.3g} ms exposed"}),
        }
        baseline = next((one for one in rows if one.details["engine"] == PLAIN), None)
        rows.append(
            row("comm", f"{name}, {size}, {team}", ms, "ms", better="lower", baseline=baseline, details=details)
        )
    return rows


def _ways(net: _Net, clips: Sequence[Tensor], plan: Plan, world: World) -> dict[str, Callable[[], Engine]]:
    found: dict[str, Callable[[], Engine]] = {
        PLAIN: lambda: _ddp(net, clips, plan),
        SILENT: lambda: _ddp(net, clips, plan, silent=True),
        "DDP contiguous": lambda: _ddp(net, clips, plan, ndhwc=False),
    }
    for stage in _STAGES:
        for overlap in (False, True):
            name = f"DeepSpeed stage {stage}{' overlap' * overlap}"
            found[name] = partial(_deepspeed, net, clips, plan, world, stage=stage, overlap=overlap)
    return found


def _ddp(net: _Net, clips: Sequence[Tensor], plan: Plan, *, ndhwc: bool = True, silent: bool = False) -> Engine:
    """As the plain engine of training wraps it; `silent` keeps the gradients on their ranks."""
    module = copy.deepcopy(net)
    if ndhwc:
        use_ndhwc_weights(module)
    device = next(module.parameters()).device
    ddp = DistributedDataParallel(
        module, device_ids=[device.index] if device.type == "cuda" else None, broadcast_buffers=False
    )
    optimizer = torch.optim.SGD(module.parameters(), lr=_LR, momentum=_MOMENTUM)

    def step() -> None:
        with ddp.no_sync() if silent else contextlib.nullcontext():
            with torch.autocast(device.type, torch.bfloat16, enabled=plan.precision == "bf16"):
                loss = ddp(*clips)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Engine(step, lambda: None, "fp32", "ndhwc" if ndhwc else "contiguous")


def _deepspeed(
    net: _Net, clips: Sequence[Tensor], plan: Plan, world: World, *, stage: Literal[0, 1], overlap: bool
) -> Engine:
    """With the settings of training, but for the overlap. Weights keep their layout at stage 1 (law 4)."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiles for a minute, and serves inference alone
    module = copy.deepcopy(net)
    train = TrainConfig(zero_stage=stage, precision=plan.precision)  # type: ignore[call-arg]  # defaults from Field
    layout = BatchLayout(plan.clips * world.size, plan.clips, 1, world.size, plan.clips, 1, "mixed")
    settings = deepspeed_config(train, layout)
    settings["zero_optimization"] = {**settings["zero_optimization"], "overlap_comm": overlap}
    optimizer = torch.optim.SGD(module.parameters(), lr=_LR, momentum=_MOMENTUM)
    engine, _, _, _ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings, dist_init_required=False)
    if stage == 0:
        use_ndhwc_weights(module)

    def step() -> None:
        engine.backward(engine(*clips))
        engine.step()

    form = "ndhwc" if stage == 0 else "contiguous"
    return Engine(step, engine.destroy, str(settings["communication_data_type"]), form)


def _clips(plan: Plan, channels: int, device: str) -> Tensor:
    shape = plan.shape
    return torch.rand(plan.clips, shape.frames, shape.side, shape.side, channels, device=device) * 2 - 1


def _time(engine: Engine, steps: int) -> float:
    """Seconds of a step; all ranks begin together."""
    dist.barrier()
    begin = time.perf_counter()
    for _ in range(steps):
        engine.step()
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
