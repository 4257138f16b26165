"""DALI: encoded frames of a store to normalised float clips, one pipeline per stream, on CPU or GPU.

Every stream is fed by a stateless source and told per sample where to crop and whether to flip, so DALI holds neither
order nor randomness (D5, D6). JPEG streams are decoded as one
flat batch of clips x frames (D3): `(N*T, H, W, C)` seen as `(N, T, H, W, C)` is `channels_last_3d` memory once
permuted, so nothing is copied (law 4).
"""

import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, types
from nvidia.dali.types import BatchInfo
from torch import Tensor

from mmsada_hpc.data.manifest import Stream
from mmsada_hpc.data.plan import ClipPlan, Views
from mmsada_hpc.data.store import Store
from mmsada_hpc.data.windows import WindowRule
from mmsada_hpc.errors import UserError

Schedule = Callable[[int], ClipPlan]
Samples = list[NDArray[Any]] | NDArray[Any]

# (x / 256 - 0.5) * 2 = (x - 128) / 128: [-1, 0.992], and flow byte 128 (no motion) becomes exactly 0 (spec 4.5).
MIDDLE = 128.0


@dataclass(frozen=True)
class PipelineSettings:
    """What a stream's graph depends on, beside the store."""

    rule: WindowRule
    crop: int
    """Output side in pixels."""
    device: Literal["cpu", "gpu"]
    device_id: int | None
    """Local GPU; None on CPU, where DALI then touches no CUDA."""
    threads: int
    prefetch: int
    readers: int = 0
    """Reader processes; 0 reads in this one."""
    motion: bool = True
    """False: the centre frame repeated, flow zero (a control)."""


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
        if self._stream == "rgb":
            return (encoded, *self._geometry(views, self._settings.rule.num_frames))
        sign_N2 = np.where(views.flip_N[:, None], [[-1.0, 1.0]], [[1.0, 1.0]])
        # A flipped u is 255 - u, and ((255 - u) - 128) / 128 = (u - 127) / -128 (spec 4.5); v is only mirrored.
        mean_N2 = np.where(views.flip_N[:, None], [[MIDDLE - 1, MIDDLE]], [[MIDDLE, MIDDLE]])
        per_frame = [
            np.repeat(x.astype(np.float32), self._settings.rule.num_frames, axis=0) for x in (mean_N2, sign_N2 * MIDDLE)
        ]
        return (encoded[::2], encoded[1::2], *self._geometry(views, self._settings.rule.num_frames), *per_frame)

    def _video(self, views: Views) -> tuple[Samples, ...]:
        clips = range(len(views.centre_N))
        encoded: Samples = [self._store.read_video(self.video_of(views, clip)) for clip in clips]
        frames = np.stack([self.frames(int(views.centre_N[clip])) - 1 for clip in clips]).astype(np.int32)
        return (encoded, frames, *self._geometry(views, 1))

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


def build_pipeline(
    source: StreamSource, *, stream: Stream, is_video: bool, batch: int, settings: PipelineSettings
) -> Pipeline:
    """The graph of one stream: decode (the crop alone, where the codec allows it), resize, flip, normalise.

    Args:
        batch: clips of the largest micro-batch.
    """
    samples = batch if is_video else batch * settings.rule.num_frames
    pipeline = Pipeline(
        batch_size=samples,
        num_threads=settings.threads,
        device_id=settings.device_id,
        prefetch_queue_depth=settings.prefetch,
        py_num_workers=max(1, settings.readers),
        py_start_method="spawn",
        exec_dynamic=True,
    )
    graph = _video_graph if is_video else _rgb_graph if stream == "rgb" else _flow_graph
    with pipeline:
        pipeline.set_outputs(graph(source, settings))
    return pipeline


def _inputs(source: StreamSource, settings: PipelineSettings, count: int) -> Any:
    return fn.external_source(
        source=source,
        num_outputs=count,
        batch=True,
        batch_info=True,
        parallel=settings.readers > 0,
        prefetch_queue_depth=settings.prefetch if settings.readers else None,
    )


def _decoder(settings: PipelineSettings) -> str:
    return "mixed" if settings.device == "gpu" else "cpu"


def _finish(pixels: Any, mirror: Any, settings: PipelineSettings, *, layout: str, **normalise: Any) -> Any:
    resized = fn.resize(
        pixels,
        resize_x=settings.crop,
        resize_y=settings.crop,
        interp_type=types.INTERP_LINEAR,
        antialias=False,
        dtype=types.FLOAT,
    )
    return fn.crop_mirror_normalize(resized, mirror=mirror, output_layout=layout, dtype=types.FLOAT, **normalise)


def _rgb_graph(source: StreamSource, settings: PipelineSettings) -> Any:
    jpeg, corner, shape, mirror = _inputs(source, settings, 4)
    pixels = fn.decoders.image_slice(
        jpeg, start=corner, shape=shape, axis_names="HW", device=_decoder(settings), output_type=types.RGB
    )
    return _finish(pixels, mirror, settings, layout="HWC", mean=[MIDDLE], std=[MIDDLE])


def _flow_graph(source: StreamSource, settings: PipelineSettings) -> Any:
    u, v, corner, shape, mirror, mean, std = _inputs(source, settings, 7)
    planes = [
        fn.decoders.image_slice(
            x, start=corner, shape=shape, axis_names="HW", device=_decoder(settings), output_type=types.GRAY
        )
        for x in (u, v)
    ]
    flow = _finish(fn.cat(*planes, axis=2), mirror, settings, layout="HWC", mean=mean, std=std)
    return flow if settings.motion else flow * np.float32(0)


def _video_graph(source: StreamSource, settings: PipelineSettings) -> Any:
    encoded, frames, corner, shape, mirror = _inputs(source, settings, 5)
    pixels = fn.decoders.video(encoded, frames=frames, device=_decoder(settings))
    cut = fn.slice(pixels, start=corner, shape=shape, axis_names="HW")
    return _finish(cut, mirror, settings, layout="FHWC", mean=[MIDDLE], std=[MIDDLE])


class StreamPipeline:
    """Micro-batches of one stream in the order of its schedule."""

    def __init__(
        self, store: Store, stream: Stream, schedule: Schedule, settings: PipelineSettings, *, batch: int
    ) -> None:
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
        """`(N, T, H, W, C)`, DALI's own memory; valid as long as the tensor lives."""
        try:
            (out,) = self._pipeline.run()
        except RuntimeError as error:
            raise self._name_broken(error) from error
        self._iteration += 1
        flat = torch.utils.dlpack.from_dlpack(out.as_tensor())
        return flat.view(-1, self._settings.rule.num_frames, *flat.shape[-3:])

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
