"""DALI: encoded frames of a store to normalised float clips, one pipeline per stream, on CPU or GPU.

Every stream is fed by a stateless source and told per sample where to crop and whether to flip, so DALI holds neither
order nor randomness (D5, D6). JPEG streams are decoded as one
flat batch of clips x frames (D3): `(N*T, H, W, C)` seen as `(N, T, H, W, C)` is `channels_last_3d` memory once
permuted, so nothing is copied (law 4).
"""

import contextlib
import dataclasses
import math
import signal
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali.types import BatchInfo
from torch import Tensor

from mmsada_hpc.data.graph import MIDDLE, PipelineSettings, Samples, build_pipeline
from mmsada_hpc.data.manifest import Stream
from mmsada_hpc.data.plan import ClipPlan, Views
from mmsada_hpc.data.store import Store
from mmsada_hpc.errors import UserError
from mmsada_kernels.clips import is_compiled, make_clips

Schedule = Callable[[int], ClipPlan]


class StreamSource:
    """Gives DALI the encoded samples of micro-batch i of one stream, with their crops and flips."""

    def __init__(self, store: Store, stream: Stream, schedule: Schedule, settings: PipelineSettings) -> None:
        self._store, self._stream, self._schedule, self._settings = store, stream, schedule, settings
        self._is_video = stream == "rgb" and store.manifest.rgb_form == "video"

    def __call__(self, info: BatchInfo | int) -> tuple[Samples, ...]:
        views = self.views(info if isinstance(info, int) else info.iteration)
        return self._video(views) if self._is_video else self._images(views)

    def views(self, iteration: int) -> Views:
        """The stream's share of the plan."""
        return self._schedule(iteration).views[self._stream]

    def frames(self, centre: int) -> NDArray[np.int64]:
        """Frame numbers of the stream in a window."""
        rule = self._settings.rule
        numbers = rule.rgb_frames(centre) if self._stream == "rgb" else rule.flow_frames(centre)
        return numbers if self._settings.motion else np.full_like(numbers, numbers[len(numbers) // 2])

    def video_of(self, views: Views, clip: int) -> int:
        return int(self._store.segments.video[views.segment_N[clip]])

    def encoded(self, views: Views, clip: int) -> list[NDArray[np.uint8]]:
        """JPEG bytes of one window; u and v alternate in the flow stream."""
        return self._store.read_frames(self._stream, self.video_of(views, clip), self.frames(int(views.centre_N[clip])))

    def _images(self, views: Views) -> tuple[Samples, ...]:
        encoded = [jpeg for clip in range(len(views.centre_N)) for jpeg in self.encoded(views, clip)]
        num_frames = self._settings.rule.num_frames
        if self._settings.finish == "kernel":
            repeats = num_frames * self._settings.images_per_frame(self._stream)
            return (encoded, *self._geometry(views, repeats)[:2])
        geometry = self._geometry(views, num_frames)
        if self._stream == "rgb":
            return (encoded, *geometry)
        sign_N2 = np.where(views.flip_N[:, None], [[-1.0, 1.0]], [[1.0, 1.0]])
        # A flipped u is 255 - u, and ((255 - u) - 128) / 128 = (u - 127) / -128 (spec 4.5); v is only mirrored.
        mean_N2 = np.where(views.flip_N[:, None], [[MIDDLE - 1, MIDDLE]], [[MIDDLE, MIDDLE]])
        per_frame = [np.repeat(x.astype(np.float32), num_frames, axis=0) for x in (mean_N2, sign_N2 * MIDDLE)]
        return (encoded[::2], encoded[1::2], *geometry, *per_frame)

    def _video(self, views: Views) -> tuple[Samples, ...]:
        encoded: Samples = [self._store.read_video(self.video_of(views, clip)) for clip in range(len(views.centre_N))]
        frames = np.stack([self.frames(int(centre)) - 1 for centre in views.centre_N]).astype(np.int32)
        geometry = self._geometry(views, 1)
        return (encoded, frames, *(geometry[:2] if self._settings.finish == "kernel" else geometry))

    @staticmethod
    def _geometry(views: Views, repeats: int) -> tuple[Samples, ...]:
        box_N4 = views.box_N4.astype(np.int32)
        arrays = (box_N4[:, :2], box_N4[:, 2:], views.flip_N.astype(np.int32))
        return tuple(np.repeat(x, repeats, axis=0) for x in arrays)


@contextlib.contextmanager
def _deaf_to_usr2() -> Iterator[None]:
    """Processes started inside never see Slurm's warning signal, which may go to every process of a job and by default
    ends them (D34): the rank would wait for its readers for ever.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _with_finish(settings: PipelineSettings) -> PipelineSettings:
    """The settings with "auto" decided."""
    if settings.finish != "auto":
        return settings
    has_kernel = settings.device == "cpu" and is_compiled()
    return dataclasses.replace(settings, finish="kernel" if has_kernel else "graph")


def _flat(crops: Any) -> Tensor:
    """All bytes of a list of crops, one after another, in DALI's own memory: what leaves a pipeline is one piece."""
    total = sum(math.prod(shape) for shape in crops.shape())
    return torch.utils.dlpack.from_dlpack(crops.as_reshaped_tensor([total]))


class StreamPipeline:
    """Micro-batches of one stream in the order of its schedule."""

    def __init__(
        self, store: Store, stream: Stream, schedule: Schedule, settings: PipelineSettings, *, batch: int
    ) -> None:
        settings = _with_finish(settings)
        self._source = StreamSource(store, stream, schedule, settings)
        self._store, self._stream, self._settings = store, stream, settings
        self._is_video = stream == "rgb" and store.manifest.rgb_form == "video"
        self._pipeline = build_pipeline(
            self._source, stream=stream, is_video=self._is_video, batch=batch, settings=settings
        )
        with _deaf_to_usr2():
            if settings.readers:
                self._pipeline.start_py_workers()
            self._pipeline.build()
        self._iteration = 0

    def next(self) -> Tensor:
        """`(N, T, H, W, C)`, float32, contiguous; its memory is not written again as long as the tensor lives."""
        try:
            (out,) = self._pipeline.run()
        except RuntimeError as error:
            raise self._name_broken(error) from error
        views = self._source.views(self._iteration)
        self._iteration += 1
        if self._settings.finish == "kernel":
            return self._make_clips(out, views)
        flat = torch.utils.dlpack.from_dlpack(out.as_tensor())
        return flat.view(-1, self._settings.rule.num_frames, *flat.shape[-3:])

    def _make_clips(self, crops: Any, views: Views) -> Tensor:
        is_flow, settings = self._stream == "flow", self._settings
        clips_NTHWC = make_clips(
            _flat(crops),
            torch.from_numpy(np.ascontiguousarray(views.box_N4[:, 2:], np.int64)),
            torch.from_numpy(np.ascontiguousarray(views.flip_N)),
            frames=settings.rule.num_frames,
            planes=2 if is_flow else 1,
            channels=1 if is_flow else 3,
            side=settings.crop,
        )
        return clips_NTHWC.zero_() if is_flow and not settings.motion else clips_NTHWC

    def _name_broken(self, error: RuntimeError) -> Exception:
        """DALI does not say which sample it could not decode: look for it among those it had in hand."""
        cause = next((e for e in (error.__cause__, error.__context__) if isinstance(e, UserError)), None)
        if cause is not None:
            return cause
        for iteration in range(self._iteration, self._iteration + self._settings.prefetch + 1):
            views = self._source.views(iteration)
            for clip in range(len(views.centre_N)):
                broken = self._broken_frame(views, clip)
                if broken:
                    return UserError(
                        f"{self._store.path}/{broken} cannot be decoded: replace it at its source and prepare the "
                        f"store again (or `mmsada prepare --skip-bad`)"
                    )
        return error

    def _broken_frame(self, views: Views, clip: int) -> str | None:
        if self._is_video:
            return None
        per_number = 1 if self._stream == "rgb" else 2
        numbers = np.repeat(self._source.frames(int(views.centre_N[clip])), per_number)
        for number, jpeg in zip(numbers, self._source.encoded(views, clip), strict=True):
            if cv2.imdecode(jpeg, cv2.IMREAD_UNCHANGED) is None:
                return self._store.describe(self._stream, self._source.video_of(views, clip), int(number))
        return None
