"""Codecs: a JPEG and three videos are made here and decoded by the loader's own DALI graph."""

import io
from fractions import Fraction
from typing import Literal, cast

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from mmsada_hpc.data.graph import MIDDLE, PipelineSettings, Samples, build_pipeline
from mmsada_hpc.data.pipeline import StreamSource
from mmsada_hpc.data.windows import WindowRule
from mmsada_hpc.doctor.report import Ask, Line

_FRAMES, _SIDE = 4, 64
# Codecs and quantisation move a level by a few; a wrong colour or frame by tens.
_TOLERANCE = 12.0
_VIDEOS = {"VP9": ("libvpx-vp9", "mp4", "yuv420p"), "MJPEG": ("mjpeg", "avi", "yuvj420p")}
_H264 = ("libx264", "mp4", "yuv420p")


class _Samples(StreamSource):
    """The same samples at every step, without a store."""

    def __init__(self, samples: Samples, *more: NDArray[np.int32]) -> None:
        self._samples = samples
        self._more = more

    def __call__(self, info: object) -> tuple[Samples, ...]:
        count = len(self._samples)
        corner_N2, shape_N2 = np.zeros((count, 2), np.int32), np.full((count, 2), _SIDE, np.int32)
        return (self._samples, *self._more, corner_N2, shape_N2, np.zeros(count, np.int32))


def check(ask: Ask) -> list[Line]:
    """One line, for the GPU where DALI has one."""
    import torch

    return [judge(*try_all("gpu" if torch.cuda.is_available() else "cpu"))]


def try_all(device: Literal["cpu", "gpu"]) -> tuple[str, dict[str, str | None]]:
    """The device, and for each codec None where it decodes to the right pixels, else why not."""
    grey_T = np.linspace(60, 180, _FRAMES)
    results = {"JPEG": _try(device, _images(grey_T), grey_T, is_video=False)}
    for name, (codec, container, pixels) in _VIDEOS.items():
        results[name] = _try(device, _video(grey_T, codec, container, pixels), grey_T, is_video=True)
    if _H264[0] in av.codecs_available:
        results["H.264"] = _try(device, _video(grey_T, *_H264), grey_T, is_video=True)
    return device, results


def judge(device: str, results: dict[str, str | None]) -> Line:
    """JPEG is needed; VP9 by stores with `--rgb video`; H.264 is for the GPU alone."""
    good = [name for name, why in results.items() if why is None]
    bad = {name: why for name, why in results.items() if why is not None}
    on = "on the GPU" if device == "gpu" else "on the CPU"
    what = f"DALI decodes {', '.join(good) or 'nothing'} {on}"
    if device == "cpu" and "H.264" in bad:
        what += " (H.264 is refused there: only a GPU decodes it; `mmsada prepare` turns it into JPEG or VP9)"
        del bad["H.264"]
    if not bad:
        return Line("codecs", "ok", what)
    what += f"; not {', '.join(f'{name} ({why})' for name, why in bad.items())}"
    if "JPEG" in bad:
        return Line("codecs", "fail", what, "install DALI again (the extra cuda13 or cuda12) for this CUDA and driver")
    return Line("codecs", "warn", what, "keep stores of JPEG frames here: `mmsada prepare` without --rgb video")


def _try(device: Literal["cpu", "gpu"], samples: Samples, grey_T: NDArray[np.float64], *, is_video: bool) -> str | None:
    try:
        seen_T = _decode(device, samples, is_video=is_video)
    except RuntimeError as error:
        lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
        return next((line for line in lines if "rror" in line and ":" in line), lines[0] if lines else "refused")[:120]
    if seen_T.shape != grey_T.shape:
        return f"{len(seen_T)} frames of {len(grey_T)}"
    off = float(np.abs(seen_T - grey_T).max())
    return None if off < _TOLERANCE else f"grey levels are off by {off:.0f}"


def _decode(device: Literal["cpu", "gpu"], samples: Samples, *, is_video: bool) -> NDArray[np.float64]:
    """Mean grey level of each frame, through the graph that training uses."""
    import torch

    settings = PipelineSettings(
        rule=WindowRule(num_frames=_FRAMES, rgb_step=1, flow_stride=1),
        crop=_SIDE,
        device=device,
        device_id=0 if device == "gpu" else None,
        threads=1,
        prefetch=1,
    )
    frames = (np.arange(_FRAMES, dtype=np.int32)[None],) if is_video else ()
    source = _Samples(samples, *frames)
    pipeline = build_pipeline(source, stream="rgb", is_video=is_video, batch=1, settings=settings)
    pipeline.build()
    (out,) = pipeline.run()
    pixels_THWC = torch.utils.dlpack.from_dlpack(out.as_tensor()).view(-1, _SIDE, _SIDE, 3)
    mean: NDArray[np.float64] = (pixels_THWC.double().mean((1, 2, 3)) * MIDDLE + MIDDLE).cpu().numpy()
    return mean


def _images(grey_T: NDArray[np.float64]) -> Samples:
    pictures = [np.full((_SIDE, _SIDE, 3), round(grey), np.uint8) for grey in grey_T]
    return [np.frombuffer(cv2.imencode(".jpg", picture)[1].tobytes(), np.uint8) for picture in pictures]


def _video(grey_T: NDArray[np.float64], codec: str, container: str, pixels: str) -> Samples:
    """One video; frame n is packet n, as in our stores."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        options = {"g": "1"} if codec == "mjpeg" else {"g": "8", "lag-in-frames": "0", "auto-alt-ref": "0", "b": "0"}
        added = file.add_stream(codec, rate=Fraction(30), options={} if codec == "libx264" else options)
        stream = cast(av.VideoStream, added)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = _SIDE, _SIDE, pixels, 1_000_000
        for grey in grey_T:
            picture = np.full((_SIDE, _SIDE, 3), round(grey), np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    return [np.frombuffer(buffer.getvalue(), np.uint8)]
