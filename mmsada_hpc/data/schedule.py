"""Which clips a rank decodes at its i-th micro-batch: in training from the plan, at test a fixed list. Small,
picklable, without state (law 1).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mmsada_hpc.data.layout import BatchLayout
from mmsada_hpc.data.manifest import STREAMS
from mmsada_hpc.data.plan import ClipPlan, Planner, Views
from mmsada_hpc.data.windows import Ints, WindowRule, centre_box


@dataclass(frozen=True)
class TrainSchedule:
    """Micro-batch i of a rank, counted from update `start` of a stage."""

    planner: Planner
    layout: BatchLayout
    rank: int
    stage: int
    start: int
    _last: dict[int, ClipPlan] = field(default_factory=dict, repr=False)
    """The last planned update: two streams and the labels ask for the same one."""

    @property
    def largest(self) -> int:
        return self.layout.micro_batch

    def position(self, iteration: int) -> tuple[int, int]:
        """Update of the stage and micro-batch inside it."""
        step, micro = divmod(iteration, self.layout.accumulation)
        return self.start + step, micro

    def rows(self, iteration: int) -> Ints:
        """Rows of the global batch, `(micro_batch,)`."""
        return self.layout.rows(self.rank, self.position(iteration)[1])

    def __call__(self, iteration: int) -> ClipPlan:
        step, _ = self.position(iteration)
        whole = self._last.get(step)
        if whole is None:
            whole = self.planner.step(self.stage, step)
            self._last[step] = whole
            for old in [s for s in self._last if s < step - 8]:  # DALI plans a few updates ahead of the loop
                del self._last[old]
        return whole.take(self.rows(iteration))

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_last": {}}


@dataclass(frozen=True)
class TestSchedule:
    """A rank's share of the test windows, `batch` at a time; the last one may be smaller."""

    __test__ = False  # not a pytest class
    windows: ClipPlan
    batch: int

    @property
    def largest(self) -> int:
        return min(self.batch, len(self.windows))

    def __len__(self) -> int:
        return -(-len(self.windows) // self.batch)

    def __call__(self, iteration: int) -> ClipPlan:
        first = min(iteration, len(self) - 1) * self.batch  # DALI reads ahead of the end
        return self.windows.take(np.arange(first, min(first + self.batch, len(self.windows))))


def plan_test_windows(
    *,
    rows: Ints,
    start: Ints,
    stop: Ints,
    label: Ints,
    domain: int,
    rule: WindowRule,
    windows: int,
    frame_size: tuple[int, int],
    streams: Sequence[str] = STREAMS,
) -> ClipPlan:
    """`windows` centre-cropped windows of each segment, segment by segment; all streams share the centre (spec 4.4,
    4.5).

    Args:
        rows, start, stop, label: `(segments,)` of the store.
        domain: 0 source, 1 target.
    """
    centre = rule.test_centres(start, stop, windows).reshape(-1)
    n = len(centre)
    views = Views(np.repeat(rows, windows), centre, np.tile(centre_box(*frame_size), (n, 1)), np.zeros(n, bool))
    same = dict.fromkeys(streams, views)
    return ClipPlan(same, np.full(n, domain), np.repeat(label, windows), np.ones(n, bool), {})
