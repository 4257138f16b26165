"""DALI's graphs: encoded samples of one stream to crops or clips, on CPU or GPU.

JPEG streams are decoded as one flat batch of clips x frames (D3), and the crop alone where the codec allows it. A graph
ends in one of two ways (`PipelineSettings.finish`): with normalised float clips, or with the crops as they were
decoded, for `mmsada_kernels.clips`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, types

from mmsada_hpc.data.manifest import Stream
from mmsada_hpc.data.windows import WindowRule

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
    finish: Literal["auto", "graph", "kernel"] = "auto"
    """What resizes, mirrors and normalises: DALI, or the compiled kernel after it (CPU alone, about ten times faster);
    auto = the kernel where there is one. The same pixels to a hundredth of a grey level.
    """

    def images_per_frame(self, stream: Stream) -> int:
        """Samples that DALI decodes for one frame of a JPEG stream: with the kernel u and v are two."""
        return 2 if stream == "flow" and self.finish == "kernel" else 1


def build_pipeline(
    source: Callable[..., tuple[Samples, ...]],
    *,
    stream: Stream,
    is_video: bool,
    batch: int,
    settings: PipelineSettings,
) -> Pipeline:
    """The graph of one stream.

    Args:
        source: gives what `StreamSource` does for the same settings.
        batch: clips of the largest micro-batch.
    """
    pipeline = Pipeline(
        batch_size=batch if is_video else batch * settings.rule.num_frames * settings.images_per_frame(stream),
        num_threads=settings.threads,
        device_id=settings.device_id,
        prefetch_queue_depth=settings.prefetch,
        py_num_workers=max(1, settings.readers),
        py_start_method="spawn",
        exec_dynamic=True,
    )
    with pipeline:
        pipeline.set_outputs(_graph(source, settings, stream=stream, is_video=is_video))
    return pipeline


def _graph(source: Any, settings: PipelineSettings, *, stream: Stream, is_video: bool) -> Any:
    if settings.finish == "kernel":
        return _video_crops(source, settings) if is_video else _image_crops(source, settings, stream)
    return (_video_graph if is_video else _rgb_graph if stream == "rgb" else _flow_graph)(source, settings)


def _inputs(source: Any, settings: PipelineSettings, count: int) -> Any:
    return fn.external_source(
        source=source,
        num_outputs=count,
        batch=True,
        batch_info=True,
        parallel=settings.readers > 0,
        prefetch_queue_depth=settings.prefetch if settings.readers else None,
    )


def _decode(jpeg: Any, corner: Any, shape: Any, settings: PipelineSettings, kind: Any) -> Any:
    return fn.decoders.image_slice(
        jpeg, start=corner, shape=shape, axis_names="HW", device=_decoder(settings), output_type=kind
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


def _rgb_graph(source: Any, settings: PipelineSettings) -> Any:
    jpeg, corner, shape, mirror = _inputs(source, settings, 4)
    pixels = _decode(jpeg, corner, shape, settings, types.RGB)
    return _finish(pixels, mirror, settings, layout="HWC", mean=[MIDDLE], std=[MIDDLE])


def _flow_graph(source: Any, settings: PipelineSettings) -> Any:
    u, v, corner, shape, mirror, mean, std = _inputs(source, settings, 7)
    planes = [_decode(x, corner, shape, settings, types.GRAY) for x in (u, v)]
    flow = _finish(fn.cat(*planes, axis=2), mirror, settings, layout="HWC", mean=mean, std=std)
    return flow if settings.motion else flow * np.float32(0)


def _video_graph(source: Any, settings: PipelineSettings) -> Any:
    encoded, frames, corner, shape, mirror = _inputs(source, settings, 5)
    pixels = fn.decoders.video(encoded, frames=frames, device=_decoder(settings))
    cut = fn.slice(pixels, start=corner, shape=shape, axis_names="HW")
    return _finish(cut, mirror, settings, layout="FHWC", mean=[MIDDLE], std=[MIDDLE])


def _image_crops(source: Any, settings: PipelineSettings, stream: Stream) -> Any:
    jpeg, corner, shape = _inputs(source, settings, 3)
    return _decode(jpeg, corner, shape, settings, types.RGB if stream == "rgb" else types.GRAY)


def _video_crops(source: Any, settings: PipelineSettings) -> Any:
    encoded, frames, corner, shape = _inputs(source, settings, 4)
    return fn.slice(fn.decoders.video(encoded, frames=frames), start=corner, shape=shape, axis_names="HW")
