"""A modality beside RGB and flow as arrays of numbers: VIDEO.npy of `(rows, channels)`, mel bands of the sound for
instance, read by memory map.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmsada_hpc.config import StreamConfig
from mmsada_hpc.data.graph import PipelineSettings
from mmsada_hpc.data.plan import ClipPlan
from mmsada_hpc.data.store import Store
from mmsada_hpc.data.windows import WindowRule
from mmsada_hpc.errors import UserError


@dataclass(frozen=True)
class ArrayStream:
    """One such stream, its files opened and checked."""

    settings: StreamConfig
    rows: tuple[NDArray[np.generic], ...]
    """Per video of the store, memory-mapped."""

    @classmethod
    def open(cls, name: str, settings: StreamConfig, store: Store) -> "ArrayStream":
        """Map the file of every video.

        Raises:
            UserError: a file is missing, no table of numbers of `channels` columns, or shorter than its video.
        """
        return cls(settings, tuple(_open(name, settings, store, video) for video in range(len(store.videos))))

    def window(self, video: int, centre: int, rule: WindowRule) -> NDArray[np.float32]:
        """`(length, channels)`: evenly drawn rows of the time that the RGB window around `centre` spans."""
        first, span = centre - rule.half - 1, 2 * rule.half
        times = first + span * (np.arange(self.settings.length) + 0.5) / self.settings.length
        rows = np.clip((times * self.settings.rate).astype(np.int64), 0, len(self.rows[video]) - 1)
        return np.asarray(self.rows[video][rows], np.float32)


def _open(name: str, settings: StreamConfig, store: Store, video: int) -> NDArray[np.generic]:
    path: Path = settings.arrays / f"{store.videos[video]}.npy"
    key = f"data.streams.{name}"
    try:
        array: NDArray[np.generic] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {key}.arrays wants one such file a video") from error
    if array.ndim != 2 or array.shape[1] != settings.channels or array.dtype.kind not in "fiu":
        raise UserError(
            f"{path}: {array.dtype} numbers of shape {array.shape}; {key}.channels={settings.channels} wants "
            f"(rows, {settings.channels})"
        )
    first, last = store.extent("rgb", video)
    if len(array) < int((last - 1) * settings.rate):
        raise UserError(
            f"{path}: {len(array)} rows for {last - first + 1} RGB frames; {key}.rate={settings.rate:g} rows a frame "
            f"wants {int((last - first + 1) * settings.rate)}"
        )
    return array


class ArrayPipeline:
    """Micro-batches of one stream in the order of its schedule, as `StreamPipeline` gives them of video."""

    def __init__(
        self,
        stream: ArrayStream,
        store: Store,
        name: str,
        schedule: Callable[[int], ClipPlan],
        settings: PipelineSettings,
    ) -> None:
        self._stream, self._store, self._name, self._schedule = stream, store, name, schedule
        self._settings, self._iteration = settings, 0

    def next(self) -> Tensor:
        """`(N, L, C)` on the device that decodes; zeros where the control run takes all motion away."""
        views = self._schedule(self._iteration).views[self._name]
        self._iteration += 1
        windows = [
            self._stream.window(int(self._store.segments.video[row]), int(centre), self._settings.rule)
            for row, centre in zip(views.segment_N, views.centre_N, strict=True)
        ]
        clips_NLC = torch.from_numpy(np.stack(windows)) * float(self._settings.motion)
        return clips_NLC if self._settings.device_id is None else clips_NLC.to(f"cuda:{self._settings.device_id}")
