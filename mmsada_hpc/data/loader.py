"""The store's windows as `Batch`es: one DALI pipeline per video stream, arrays of numbers for any further stream,
labels and dropout masks from the plan beside them.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from mmsada_hpc.data.arrays import ArrayPipeline, ArrayStream
from mmsada_hpc.data.batch import Batch, make_batch
from mmsada_hpc.data.graph import PipelineSettings
from mmsada_hpc.data.manifest import STREAMS
from mmsada_hpc.data.philox import keep_mask
from mmsada_hpc.data.pipeline import StreamPipeline
from mmsada_hpc.data.schedule import TestSchedule, TrainSchedule
from mmsada_hpc.data.store import Store


@dataclass(frozen=True)
class DropoutPlan:
    """Dropout in front of the classifier, drawn per clip from its place in the global batch (law 1)."""

    seed: int
    drop: float
    features: Mapping[str, int]
    """Width of each stream's features."""


class Loader:
    """Micro-batches of a schedule, in order."""

    def __init__(
        self,
        store: Store,
        schedule: TrainSchedule | TestSchedule,
        settings: PipelineSettings,
        *,
        dropout: DropoutPlan | None = None,
        arrays: Mapping[str, ArrayStream] | None = None,
    ) -> None:
        self._schedule, self._dropout = schedule, dropout
        self._streams: dict[str, StreamPipeline | ArrayPipeline] = {
            stream: StreamPipeline(store, stream, schedule, settings, batch=schedule.largest) for stream in STREAMS
        }
        for name, array in (arrays or {}).items():
            self._streams[name] = ArrayPipeline(array, store, name, schedule, settings)
        self._iteration = 0
        self.wait_s = 0.0
        """Seconds since it was last set to 0 spent waiting for decoded clips and, on a CPU, finishing them (resize and
        normalise in `mmsada_kernels.clips`)."""

    def next(self) -> Batch:
        """The next micro-batch on the pipeline's device.

        Raises:
            UserError: a frame is missing, damaged or not decodable; names it.
        """
        begin = time.perf_counter()
        clips_NTHWC: dict[str, torch.Tensor] = {stream: pipeline.next() for stream, pipeline in self._streams.items()}
        self.wait_s += time.perf_counter() - begin
        plan = self._schedule(self._iteration)
        masks = self._masks()
        group_size, place_N = 0, None
        if isinstance(self._schedule, TrainSchedule):
            layout = self._schedule.layout
            group_size, place_N = layout.group_size, self._schedule.rows(self._iteration) % layout.domain_batch
        self._iteration += 1
        return make_batch(plan, clips_NTHWC, dropout_SND=masks, group_size=group_size, place_N=place_N)

    def _masks(self) -> Mapping[str, torch.Tensor]:
        schedule, dropout = self._schedule, self._dropout
        if dropout is None or not isinstance(schedule, TrainSchedule):
            return {}
        step, _ = schedule.position(self._iteration)
        rows = schedule.rows(self._iteration)
        common = {
            "seed": dropout.seed,
            "stage": schedule.stage,
            "step": step,
            "rows": schedule.layout.global_batch,
        }
        return {
            stream: torch.from_numpy(keep_mask(lane=lane, drop=dropout.drop, features=width, **common)[rows])
            for lane, (stream, width) in enumerate(dropout.features.items())
        }
