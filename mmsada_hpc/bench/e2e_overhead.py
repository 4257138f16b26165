"""What the framework costs: the real loop beside a bare PyTorch loop, update by update in one process, both on the same
clips in memory.

Bare is the network and heads alone with autocast and torch's SGD: no loader, plan, engine, figures, running statistics
(nor sums for them) or guards. The real loop plans, draws masks and does all that a run does, but decodes nothing.
"""

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmsada_hpc.bench.e2e_loop import REST, Stopwatch, TimedLoop
from mmsada_hpc.bench.e2e_parts import means
from mmsada_hpc.bench.e2e_run import bench_config, coming_together, kept, shape_of, short_run, train_for
from mmsada_hpc.bench.rows import Report, Row, row
from mmsada_hpc.cluster.world import find_world
from mmsada_hpc.config import Config, config_hash
from mmsada_hpc.config_train import TrainConfig
from mmsada_hpc.data.batch import Batch
from mmsada_hpc.data.loader import Loader
from mmsada_hpc.errors import UserError
from mmsada_hpc.methods.base import Factors, moment
from mmsada_hpc.model.batch_norm import BatchNormState
from mmsada_hpc.model.streams import use_ndhwc_weights
from mmsada_hpc.schedule import stage_schedule
from mmsada_hpc.train.engine import Engine
from mmsada_hpc.train.module import TrainModule
from mmsada_hpc.train.own_time import OwnTime

_REALISTIC = (
    "data.num_frames=16",
    "data.rgb_step=2",
    "data.crop=112",
    "model.width=1",
    "model.batch_norm.group_size=8",
    "train.global_batch=16",
    "train.precision=bf16",
)
_REALISTIC_UPDATES = 2


class BareLoop:
    """PyTorch and nothing else."""

    def __init__(self, module: TrainModule, train: TrainConfig) -> None:
        if train.memory_format == "ndhwc" and train.zero_stage == 0:
            use_ndhwc_weights(module)
        parameter = next(module.parameters())
        self._module, self._device, self._dtype = module.train(), parameter.device.type, parameter.dtype
        self._bf16 = train.precision == "bf16"
        self._sgd = torch.optim.SGD(
            module.parameters(), lr=0.0, momentum=train.momentum, weight_decay=train.weight_decay
        )

    def update(self, batches: Sequence[Batch], factors: Factors, *, lr: float, watched: Stopwatch) -> None:
        """One update over the micro-batches of one rank."""
        for batch in batches:
            with watched.part("gradients"):
                with torch.autocast(self._device, torch.bfloat16, enabled=self._bf16):
                    total = self._loss(batch, factors)
                total.backward()
        with watched.part("update"):
            self._sgd.param_groups[0]["lr"] = lr
            self._sgd.step()
            self._sgd.zero_grad(set_to_none=True)

    def _loss(self, batch: Batch, factors: Factors) -> Tensor:
        """As the module computes it, but that no batch-norm statistics are recorded."""
        clips = {stream: x.to(self._dtype) for stream, x in batch.clips_NTHWC.items()}
        return self._module.method.losses(self._module.network(clips), batch, factors).total


class ResidentClips:
    """Some micro-batches of one stream, over and over."""

    def __init__(self, clips: Sequence[Tensor]) -> None:
        self._clips, self._next = clips, 0

    def next(self) -> Tensor:
        self._next += 1
        return self._clips[(self._next - 1) % len(self._clips)]


def keep_resident(loader: Loader, num_batches: int) -> list[Batch]:
    """Decode some micro-batches and let the loader give their clips for ever, planned and masked anew each time."""
    batches = [loader.next() for _ in range(num_batches)]
    loader._streams = {
        stream: ResidentClips([batch.clips_NTHWC[stream] for batch in batches])  # type: ignore[misc]
        for stream in loader._streams
    }
    return batches


class PairedLoop(TimedLoop):
    """`TimedLoop` that makes a bare update before each of its own, whose parts are noted with it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._bare = BareLoop(self.setup.new_module(), self.config.train)
        self._batches: list[Batch] = []

    def _update(
        self, engine: Engine, loader: Loader, norms: BatchNormState, own: OwnTime, stage: int, step: int
    ) -> tuple[dict[str, Any], list[float]]:
        self.watched.end()
        if not self._batches:
            self._batches = keep_resident(loader, self.setup.layout.accumulation)
        factors = engine.module.method.factors(moment(self.config.train, stage, step))
        lr = stage_schedule(self.config.train, stage).learning_rate(step)
        bare = Stopwatch(self.setup.device)
        bare.begin()
        self._bare.update(self._batches, factors, lr=lr, watched=bare)
        bare.end()
        answer = super()._update(engine, loader, norms, own, stage, step)
        for part, seconds in bare.updates[0].items():
            self.watched.add(f"bare {part}", seconds)
        return answer


@dataclass(frozen=True)
class Costs:
    """Milliseconds of an update, one figure a repeat."""

    bare: list[float]
    real: list[float]
    bare_cpu: list[float]
    real_cpu: list[float]
    over: Mapping[str, list[float]]
    """What the real loop adds, by what it is for: adds up to `real` less `bare`."""


def costs(repeats: Sequence[Mapping[str, float]]) -> Costs:
    """Of the mean update of each repeat."""

    def each(of: Callable[[Mapping[str, float]], float]) -> list[float]:
        return [of(one) for one in repeats]

    over = {
        "engine, forward and backward": each(lambda one: one["forward"] + one["backward"] - one["bare gradients"]),
        "engine, averaging": each(lambda one: one["averaging"]),
        "engine, update": each(lambda one: one["update"] - one["bare update"]),
        "agreement": each(lambda one: one["agreement"]),
        **{part: each(lambda one, part=part: one.get(part, 0.0)) for part in REST},  # type: ignore[misc]
    }
    bare, real = each(lambda one: one["bare whole"]), each(lambda one: one["whole"])
    known = [sum(values) for values in zip(*over.values(), strict=True)]
    over["progress and all else"] = [r - b - k for r, b, k in zip(real, bare, known, strict=True)]
    return Costs(bare, real, each(lambda one: one["bare cpu"]), each(lambda one: one["cpu"]), over)


def rows_of(shape: str, found: Costs) -> list[Row]:
    """Both loops, what the real one takes more in percent of the bare one, and what of it is for what."""
    plain = row("e2e", f"bare loop, {shape}", found.bare, "ms", better="lower")
    real = row("e2e", f"real loop, {shape}", found.real, "ms", better="lower", baseline=plain)
    percent, cpu = (
        [100 * (r / b - 1) for r, b in zip(ours, theirs, strict=True)]
        for ours, theirs in ((found.real, found.bare), (found.real_cpu, found.bare_cpu))
    )
    rows = [plain, real]
    rows.append(row("e2e", f"overhead, {shape}", percent, "%", better="lower"))
    rows.append(row("e2e", f"overhead in CPU time, {shape}", cpu, "%", better="lower"))
    for part, values in found.over.items():
        share = {"percent_of_bare": round(100 * statistics.median(values) / plain.value, 3)}
        rows.append(row("e2e", f"overhead: {part}, {shape}", values, "ms", better="lower", details=share))
    return rows


def bench_overhead(args: argparse.Namespace, report: Report) -> None:
    """The config that was asked for; without one the demo's size, and (not `--quick`) I3D's own width at 16x112^2."""
    with coming_together() as world:
        if world.size > 1:
            raise UserError("bench e2e --overhead: run it on one rank; `bench comm` measures engines between ranks")
        config = bench_config(args.config, args.overrides, stores=args.stores)
        _bench(config, args.updates, args, report)
        if args.config is None and not args.quick:
            larger = bench_config(None, [*_REALISTIC, *args.overrides], stores=args.stores)
            _bench(larger, min(args.updates, _REALISTIC_UPDATES), args, report)


def _bench(config: Config, updates: int, args: argparse.Namespace, report: Report) -> None:
    timed, loops = (1 + args.repeats) * updates, list[PairedLoop]()
    short = short_run(config, timed, save_every=0, runs=args.runs)
    make_loop = kept(partial(PairedLoop, num_timed=timed), loops)
    train_for(short, find_world(), make_loop)
    seconds = loops[0].watched.updates
    report.config_hash = config_hash(config)
    for one in rows_of(
        shape_of(config, 1), costs([means(seconds[i : i + updates]) for i in range(updates, timed, updates)])
    ):
        report.add(one)
