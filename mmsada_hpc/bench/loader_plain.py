"""The plain alternatives to the loader: a PyTorch `DataLoader` with workers that decode with PIL or with OpenCV.

They read the same bytes of the same store, for the same windows of the same plan, and give the same float clips as
`mmsada_hpc.data.loader`; the tests compare the pixels.
"""

import io
from collections.abc import Iterator
from typing import Any, Literal

import av
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmsada_hpc.data.graph import PipelineSettings
from mmsada_hpc.data.manifest import STREAMS, Stream
from mmsada_hpc.data.pipeline import StreamSource
from mmsada_hpc.data.plan import Views
from mmsada_hpc.data.schedule import TrainSchedule
from mmsada_hpc.data.store import Store

Decoder = Literal["PIL", "OpenCV"]
Pixels = NDArray[np.uint8]

PREFETCH = 2
"""Batches that each worker holds ready, as a `DataLoader` has it by default."""


class PlainClips(Dataset[dict[str, Tensor]]):
    """Clip i of a schedule, counted over its micro-batches."""

    def __init__(self, store: Store, schedule: TrainSchedule, settings: PipelineSettings, decoder: Decoder) -> None:
        self._schedule, self._side, self._decoder = schedule, settings.crop, decoder
        self._sources = {stream: StreamSource(store, stream, schedule, settings) for stream in STREAMS}
        self._store, self._is_video = store, store.manifest.rgb_form == "video"

    def __len__(self) -> int:
        return 1 << 40  # the plan has no end

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        iteration, clip = divmod(index, self._schedule.largest)
        return {stream: self._clip(stream, iteration, clip) for stream in STREAMS}

    def _clip(self, stream: Stream, iteration: int, clip: int) -> Tensor:
        """`(T, H, W, C)` in [-1, 1)."""
        source = self._sources[stream]
        views = source.views(iteration)
        box, flips = views.box_N4[clip].tolist(), bool(views.flip_N[clip])
        images = [self._see(image, box, flips) for image in self._images(stream, views, clip)]
        if stream == "flow":
            u = [255 - image for image in images[::2]] if flips else images[::2]
            images = [np.stack(pair, axis=-1) for pair in zip(u, images[1::2], strict=True)]
        return torch.from_numpy(np.stack(images)).float().sub_(128).div_(128)

    def _images(self, stream: Stream, views: Views, clip: int) -> Iterator[Any]:
        source = self._sources[stream]
        if stream == "rgb" and self._is_video:
            yield from self._video(source, views, clip)
            return
        for jpeg in source.encoded(views, clip):
            if self._decoder == "PIL":
                yield Image.open(io.BytesIO(jpeg.data))
            else:
                yield cv2.imdecode(jpeg, cv2.IMREAD_COLOR if stream == "rgb" else cv2.IMREAD_GRAYSCALE)

    def _video(self, source: StreamSource, views: Views, clip: int) -> Iterator[Any]:
        """Frames of a window, from the key frame before it on."""
        numbers = (source.frames(int(views.centre_N[clip])) - 1).tolist()
        with av.open(io.BytesIO(self._store.read_video(source.video_of(views, clip)).data), "r") as container:
            stream = container.streams.video[0]
            assert stream.time_base is not None and stream.average_rate is not None
            ticks = 1 / (stream.time_base * stream.average_rate)
            start = stream.start_time or 0
            container.seek(start + round(numbers[0] * ticks), stream=stream)
            for frame in container.decode(stream):
                number = round(((frame.pts or 0) - start) / ticks)
                for _ in range(numbers.count(number)):
                    yield frame.to_image() if self._decoder == "PIL" else frame.to_ndarray(format="bgr24")
                if number >= numbers[-1]:
                    return

    def _see(self, image: Any, box: list[int], flips: bool) -> Pixels:
        """Cut, resize and mirror one image."""
        y, x, height, width = box
        side = (self._side, self._side)
        if self._decoder == "PIL":
            edges = (x, y, x + width, y + height)
            same = (width, height) == side
            cut = image.crop(edges) if same else image.resize(side, Image.Resampling.BILINEAR, box=edges)
            pixels = np.asarray(cut)
        else:
            pixels = image[y : y + height, x : x + width]
            if (width, height) != side:
                pixels = cv2.resize(pixels, side, interpolation=cv2.INTER_LINEAR)
            pixels = pixels[..., ::-1] if pixels.ndim == 3 else pixels
        return pixels[:, ::-1] if flips else pixels


def plain_loader(
    store: Store, schedule: TrainSchedule, settings: PipelineSettings, decoder: Decoder, *, workers: int
) -> DataLoader[dict[str, Tensor]]:
    """A `DataLoader` of the schedule's micro-batches; each worker has one thread."""
    return DataLoader(
        PlainClips(store, schedule, settings, decoder),
        batch_size=schedule.largest,
        num_workers=workers,
        worker_init_fn=_one_thread,
        prefetch_factor=PREFETCH,
        multiprocessing_context="spawn",
    )


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
