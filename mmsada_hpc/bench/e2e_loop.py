"""The real training loop with a stopwatch in it: where the time of an update goes, on one rank.

Nothing is timed in `train/` itself: what the loop calls is wrapped on the objects of this run alone.
"""

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mmsada_hpc.data.batch import Batch
from mmsada_hpc.data.loader import Loader
from mmsada_hpc.methods.base import Factors, Losses
from mmsada_hpc.model.batch_norm import BatchNormState
from mmsada_hpc.train.checkpoint import Position, Score
from mmsada_hpc.train.engine import Engine
from mmsada_hpc.train.loop import TrainLoop
from mmsada_hpc.train.own_time import OwnTime

# "averaging" is what follows a rank's last gradient (with DDP the share that the backward did not hide), "agreement"
# the small all-reduce of batch-norm sums and figures; each with the wait for slower ranks.
PARTS = {
    "data wait": ("data wait",),
    "forward": ("forward",),
    "backward": ("backward",),
    "communication": ("averaging", "agreement"),
    "update": ("update",),
}
"""The parts that the benchmark names, of those that are timed."""
REST = ("plan", "between micro-batches", "batch norm", "gradient norm", "metrics")
"""What the loop does around them, as far as it is timed."""
# No part of an update: a checkpoint, and what a benchmark does of its own.
_APART = "apart"


class Stopwatch:
    """Seconds of every update by part; a part inside another one is taken out of that one.

    On a GPU each part waits for the device, so parts do not overlap there.
    """

    def __init__(self, device: torch.device, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._device, self._clock = device, clock
        self.updates: list[dict[str, float]] = []
        """Per update the seconds of its parts, `whole` from its begin to the begin of the next one, and `cpu` seconds
        of this process in that time.
        """
        self.saves: list[float] = []
        """Seconds for which a checkpoint held the loop."""
        self.writes: list[float] = []
        """Seconds that the rest of a checkpoint took in the background (0 where there is none)."""
        self._parts: defaultdict[str, float] = defaultdict(float)
        self._open: list[float] = []
        self._begun: tuple[float, float] | None = None

    def now(self) -> float:
        """Seconds, when the device is done with what it was given."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return self._clock()

    def add(self, part: str, seconds: float) -> None:
        """To the update at hand."""
        self._parts[part] += seconds
        self._open = [inner + seconds for inner in self._open]

    def begin(self) -> None:
        """An update begins."""
        self._parts.clear()
        self._begun = self.now(), time.process_time()

    def end(self) -> None:
        """It is over; nothing where none was begun."""
        if self._begun is None:
            return
        (begin, cpu), self._begun = self._begun, None
        parts = dict(self._parts)
        whole = self.now() - begin - parts.pop(_APART, 0.0)
        parts["cpu"] = time.process_time() - cpu - parts.pop(f"{_APART} cpu", 0.0)
        self.updates.append({**parts, "whole": whole})

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a block."""
        begin = self.now()
        self._open.append(0.0)
        yield
        inside = self._open.pop()
        self.add(name, self.now() - begin - inside)
        self._open = [inner + inside for inner in self._open]

    def wrap(self, thing: object, method: str, part: str) -> None:
        """Time every call of a method of one object."""
        plain = getattr(thing, method)

        @functools.wraps(plain)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(part):
                return plain(*args, **kwargs)

        setattr(thing, method, timed)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """A block whose time belongs to no update."""
        begin, cpu = self.now(), time.process_time()
        yield
        self._parts[_APART] += self.now() - begin
        self._parts[f"{_APART} cpu"] += time.process_time() - cpu


class TimedLoop(TrainLoop):
    """`TrainLoop` that notes the parts of its first `num_timed` updates in `watched`; the rest is for a profile."""

    def __init__(self, *args: Any, num_timed: int, profile: Callable[..., None] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._num_timed, self._profile = num_timed, profile
        self.watched = Stopwatch(self.setup.device)
        self._timed: object = None
        self.watched.wrap(self.metrics, "write", "metrics")
        self.watched.wrap(self.ledger, "step", "metrics")

    def start_stage(self, *args: Any, **kwargs: Any) -> Engine:
        engine = super().start_stage(*args, **kwargs)
        time_engine(engine, self.watched)
        return engine

    def _run_stage(self, engine: Engine, stage: int, *, start: int, steps: int) -> None:
        timed = min(steps, self._num_timed)
        super()._run_stage(engine, stage, start=start, steps=timed)
        self.watched.end()
        if self._profile is not None:
            run_stage = super()._run_stage
            self._profile(lambda: run_stage(engine, stage, start=timed, steps=steps))

    def _update(
        self, engine: Engine, loader: Loader, norms: BatchNormState, own: OwnTime, stage: int, step: int
    ) -> tuple[dict[str, Any], list[float]]:
        self.watched.end()
        if self._timed is not loader:
            self._timed = loader
            self.watched.wrap(loader, "next", "plan")  # and the wait, which is taken out below
            self.watched.wrap(norms, "take_sums", "batch norm")
            self.watched.wrap(norms, "update", "batch norm")
        self.watched.begin()
        row, told = super()._update(engine, loader, norms, own, stage, step)
        self.watched.add("data wait", loader.wait_s)
        self.watched.add("plan", -loader.wait_s)
        return row, told

    def _agree(self, *args: Any, **kwargs: Any) -> tuple[Tensor, list[float], list[float]]:
        with self.watched.part("agreement"):
            return super()._agree(*args, **kwargs)

    def _save(self, engine: Engine, done: Position, *, best: Score | None) -> None:
        with self.watched.apart():
            begin = self.watched.now()
            super()._save(engine, done, best=best)
            held = self.watched.now()
            self.checkpoints.wait()  # so that no write runs beside the updates that follow
            self.watched.saves.append(held - begin)
            self.watched.writes.append(self.watched.now() - held)
            dist.barrier()


def time_engine(engine: Engine, watched: Stopwatch) -> None:
    """Split the micro-batches of an engine and time its update."""
    forward_done = [0.0]

    def note(*_: object) -> None:
        forward_done[0] = watched.now()

    engine.module.register_forward_hook(note)
    own = OwnTime(engine.module, next(engine.module.parameters()).device)
    plain: Callable[..., Losses] = engine.forward_backward

    def forward_backward(batch: Batch, factors: Factors, *, last: bool) -> Losses:
        begin = watched.now()
        own.begin()
        losses = plain(batch, factors, last=last)
        end, last_gradient = watched.now(), begin + own.seconds()
        watched.add("forward", forward_done[0] - begin)
        watched.add("backward", last_gradient - forward_done[0])
        watched.add("averaging" if last else "between micro-batches", end - last_gradient)
        return losses

    engine.forward_backward = forward_backward  # type: ignore[method-assign]
    watched.wrap(engine, "update", "update")
    watched.wrap(engine, "gradient_norm", "gradient norm")
