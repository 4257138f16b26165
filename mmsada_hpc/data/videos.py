"""Videos that PyAV opens: decoded, scaled and cut to one size, with optical flow, as the frames of a store."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from mmsada_hpc.data.flow import FlowStream
from mmsada_hpc.data.manifest import FlowConvention
from mmsada_hpc.data.shards import Row, ShardWriter, as_rows
from mmsada_hpc.data.source import BadVideo, PackedVideo, Shards, Survey
from mmsada_hpc.data.tables import member_names

Image = NDArray[np.uint8]
# Bytes per pixel of a JPEG at quality 95 and of its half as many flow pairs, as seen on real clips; only sizes shards.
_BYTES_PER_PIXEL = 0.45
# A keyframe every 8 frames; constant quality; no frame that is hidden, reordered or held back, so that frame n is
# packet n.
_VP9 = {
    "crf": "20",
    "b": "0",
    "deadline": "good",
    "cpu-used": "4",
    "g": "8",
    "keyint_min": "8",
    "lag-in-frames": "0",
    "auto-alt-ref": "0",
}


@dataclass(frozen=True)
class VideoSettings:
    """How every video is stored: frame size, quality, form of RGB, flow."""

    height: int
    width: int
    rgb_form: str
    jpeg_quality: int
    flow: FlowConvention


@dataclass(frozen=True)
class VideoSource:
    """One video file, whole, as one video of the store."""

    name: str
    path: Path
    settings: VideoSettings

    def survey(self) -> Survey:
        """Open the file and read its header."""
        try:
            with open_video(self.path) as container:
                frames, fps = _expected_frames(container), float(_rate(container.streams.video[0]))
            stat = self.path.stat()
        except BadVideo as error:
            return Survey(problem=str(error))
        if fps <= 0:
            return Survey(problem=f"{self.path}: says no frame rate; convert it to a format that does")
        height, width = self.settings.height, self.settings.width
        size = int(frames * height * width * _BYTES_PER_PIXEL)
        return Survey(f"{stat.st_size} {stat.st_mtime_ns}", frames, size, fps, height, width)

    def pack(self, shards: Shards) -> PackedVideo:
        """Decode once; RGB to one shard, flow to the other, in order of frame numbers."""
        rgb = _rgb_packer(self, shards.rgb)
        flow, flow_rows, frames = FlowStream(self.settings.flow), list[Row](), 0
        fps = Fraction(0)
        for fps, image in decode(self.path, height=self.settings.height, width=self.settings.width):
            frames += 1
            rgb.add(image, fps)
            pair = flow.push(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))
            if pair is not None:
                members = member_names("flow", self.name, len(flow_rows) // 2 + 1)
                flow_rows += [shards.flow.add(m, self._jpeg(grey)) for m, grey in zip(members, pair, strict=True)]
            shards.advance(1)
        self._check(frames, len(flow_rows) // 2)
        height, width = self.settings.height, self.settings.width
        return PackedVideo(self.name, height, width, float(fps), frames, 1, 1, as_rows(rgb.rows()), as_rows(flow_rows))

    def _check(self, frames: int, flow_files: int) -> None:
        if frames == 0:
            raise BadVideo(f"{self.path}: a video without frames")
        if flow_files == 0:
            flow = self.settings.flow
            raise BadVideo(
                f"{self.path}: only {frames} frames; flow (stride {flow.stride}, dilation {flow.dilation}) needs "
                f"{flow.stride * (flow.dilation + 1)}"
            )

    def _jpeg(self, image: Image) -> bytes:
        return encode_jpeg(image, quality=self.settings.jpeg_quality)


def encode_jpeg(image: Image, *, quality: int) -> bytes:
    """A (H,W,3) BGR or (H,W) grey image as JPEG."""
    done, coded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done, image.shape
    return coded.tobytes()


class _JpegFrames:
    """RGB as one JPEG a frame."""

    def __init__(self, source: VideoSource, shard: ShardWriter) -> None:
        self._source, self._shard, self._rows = source, shard, list[Row]()

    def add(self, image: Image, fps: Fraction) -> None:
        member = member_names("rgb", self._source.name, len(self._rows) + 1)[0]
        self._rows.append(self._shard.add(member, encode_jpeg(image, quality=self._source.settings.jpeg_quality)))

    def rows(self) -> list[Row]:
        return self._rows


class _ShortGopVideo:
    """RGB as one VP9 file with a keyframe every few frames and no hidden or delayed frames, so that any window
    decodes from nearby.
    """

    def __init__(self, source: VideoSource, shard: ShardWriter) -> None:
        self._source, self._shard = source, shard
        self._buffer = io.BytesIO()
        self._container = av.open(self._buffer, "w", format="mp4")
        self._stream: VideoStream | None = None

    def add(self, image: Image, fps: Fraction) -> None:
        if self._stream is None:
            self._stream = self._open(fps)
        frame = av.VideoFrame.from_ndarray(image, format="bgr24")
        self._container.mux(self._stream.encode(frame))

    def rows(self) -> list[Row]:
        if self._stream is None:
            return []
        self._container.mux(self._stream.encode())
        self._container.close()
        return [self._shard.add(f"{self._source.name}.mp4", self._buffer.getvalue())]

    def _open(self, fps: Fraction) -> VideoStream:
        settings = self._source.settings
        stream = self._container.add_stream("libvpx-vp9", rate=fps, options=_VP9)
        stream.height, stream.width, stream.pix_fmt = settings.height, settings.width, "yuv420p"
        stream.codec_context.thread_count = 1
        return stream


def _rgb_packer(source: VideoSource, shard: ShardWriter) -> _JpegFrames | _ShortGopVideo:
    return _ShortGopVideo(source, shard) if source.settings.rgb_form == "video" else _JpegFrames(source, shard)


def open_video(path: Path) -> InputContainer:
    """Open a video; BadVideo naming the file when it is missing, not a video, or of a codec this FFmpeg cannot
    decode.
    """
    if not path.is_file():
        raise BadVideo(f"{path}: no such video file")
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError, ValueError) as error:
        raise BadVideo(f"{path}: not a readable video ({_reason(error)})") from error
    if not container.streams.video:
        container.close()
        raise BadVideo(f"{path}: has no video stream")
    if getattr(container.streams.video[0], "codec_context", None) is None:
        container.close()
        raise BadVideo(f"{path}: its codec is unknown to PyAV's FFmpeg; convert it to another codec")
    return container


def decode(path: Path, *, height: int, width: int) -> Iterator[tuple[Fraction, Image]]:
    """Frame rate and (height,width,3) BGR image of every frame; BadVideo naming the frame where decoding fails."""
    with open_video(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        fps, done = _rate(stream), 0
        pixel_aspect = stream.sample_aspect_ratio or Fraction(1)
        try:
            for frame in container.decode(stream):
                whole = cast(Image, frame.to_ndarray(format="bgr24", threads=1))
                image = cover(whole, height=height, width=width, pixel_aspect=pixel_aspect)
                done += 1
                yield fps, image
        except (av.FFmpegError, OSError, ValueError) as error:
            raise BadVideo(f"{path}: cannot be decoded after frame {done} ({_reason(error)})") from error


def cover(image: Image, *, height: int, width: int, pixel_aspect: Fraction = Fraction(1)) -> Image:
    """Scale an (h,w,3) image until it covers height x width, then cut the centre: no size or aspect of the input
    survives.

    Shrinking averages over areas (antialiased), enlarging is bilinear. `pixel_aspect` = width of a pixel over its
    height.
    """
    rows, columns = image.shape[0], image.shape[1] * float(pixel_aspect)
    scale = max(height / rows, width / columns)
    new_height, new_width = max(height, round(rows * scale)), max(width, round(columns * scale))
    if (new_height, new_width) != image.shape[:2]:
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        image = cast(Image, cv2.resize(image, (new_width, new_height), interpolation=method))
    top, left = (new_height - height) // 2, (new_width - width) // 2
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def _rate(stream: VideoStream) -> Fraction:
    """Frames per second as the file says; 0 when it does not."""
    return stream.average_rate or stream.guessed_rate or Fraction(0)


def _expected_frames(container: InputContainer) -> int:
    stream = container.streams.video[0]
    if stream.frames:
        return stream.frames
    seconds = (container.duration or 0) / av.time_base
    return max(1, round(seconds * float(_rate(stream) or 25)))


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).splitlines()[0]
