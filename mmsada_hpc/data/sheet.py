"""The contact sheet of a store: for each class and domain a few clips, RGB above and flow as colours below."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mmsada_hpc.data.flow import to_pixels
from mmsada_hpc.data.shards import writing
from mmsada_hpc.data.store import Store
from mmsada_hpc.durable import write_atomically
from mmsada_hpc.errors import UserError

Picture = NDArray[np.uint8]
_GAP, _GROUP_GAP, _TEXT, _LEFT = 6, 28, 20, 130
_CAPTION = 15
_INK, _PALE = (25, 25, 25), (110, 110, 110)


@dataclass(frozen=True)
class _Layout:
    """Pixel sizes of the sheet; a cell holds an RGB thumbnail, its flow below, and a caption."""

    clips: int
    width: int
    height: int

    @property
    def cell(self) -> tuple[int, int]:
        return self.width + _GAP, 2 * self.height + _CAPTION + _GAP

    def left(self, domain: int, clip: int) -> int:
        return _LEFT + domain * (self.clips * self.cell[0] + _GROUP_GAP) + clip * self.cell[0]

    def top(self, row: int) -> int:
        return 3 * _TEXT + _GAP + row * (self.cell[1] + _GAP)


def colours(motion: NDArray[np.float32], *, full: float) -> Picture:
    """(H,W,2) motion in pixels -> (H,W,3) RGB: hue is the direction, white is still, full colour is `full` pixels or
    more.
    """
    x, y = motion[..., 0].astype(np.float32), motion[..., 1].astype(np.float32)
    length, angle = cv2.cartToPolar(x, y, angleInDegrees=True)
    hsv = np.stack([angle / 2, 255 * np.clip(length / full, 0, 1), np.full_like(length, 255)], axis=-1)
    return cast(Picture, cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB))


def rgb_picture(store: Store, video: int, frame: int) -> Picture:
    """(H,W,3) RGB of one frame, from either form of RGB."""
    if store.manifest.rgb_form == "video":
        return _video_frame(store.read_video(video).tobytes(), frame)
    coded = cv2.imdecode(store.read_frames("rgb", video, [frame])[0], cv2.IMREAD_COLOR)
    if coded is None:
        raise UserError(
            f"{store.path}: {store.describe('rgb', video, frame)} is not a picture; prepare the store again with "
            f"--force"
        )
    return cast(Picture, cv2.cvtColor(coded, cv2.COLOR_BGR2RGB))


def flow_motion(store: Store, video: int, frame: int) -> NDArray[np.float32]:
    """(H,W,2) motion in pixels of one flow file."""
    coded = store.read_frames("flow", video, [frame])
    grey = [cv2.imdecode(one, cv2.IMREAD_GRAYSCALE) for one in coded]
    if any(one is None for one in grey):
        raise UserError(
            f"{store.path}: {store.describe('flow', video, frame)} is not a picture; prepare the store again with "
            f"--force"
        )
    return to_pixels(np.stack(cast(list[Picture], grey), axis=-1), bound=store.manifest.flow.bound)


def _video_frame(coded: bytes, frame: int) -> Picture:
    with av.open(io.BytesIO(coded), "r") as container:
        for number, picture in enumerate(container.decode(container.streams.video[0]), 1):
            if number == frame:
                return cast(Picture, picture.to_ndarray(format="rgb24"))
    raise UserError(f"the stored video ends before frame {frame}")


def write_sheet(store: Store, path: Path, *, clips: int = 3, height: int = 96) -> None:
    """Write the contact sheet of `store` to `path` as PNG: `clips` clips of each class and domain, thumbnails
    `height` pixels high.
    """
    names = store.manifest
    layout = _Layout(clips, max(40, round(height * names.width / names.height)), height)
    labels = [int(label) for label in np.unique(store.segments.label)]
    chosen = {(d, c): _choose(store, d, c, clips) for d in range(len(names.domains)) for c in labels}
    full = _typical_motion(store, [row for rows in chosen.values() for row in rows])
    right, bottom = layout.left(len(names.domains), 0) - _GROUP_GAP + _GAP, layout.top(len(labels))
    sheet = Image.new("RGB", (max(right, 720), bottom), "white")
    _draw_heading(sheet, store, layout, full)
    _draw_names(sheet, [names.classes[label] for label in labels], layout)
    for (domain, label), rows in chosen.items():
        for i, row in enumerate(rows):
            _draw_clip(sheet, store, row, (layout.left(domain, i), layout.top(labels.index(label))), layout, full)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    writing(path, lambda: path.parent.mkdir(parents=True, exist_ok=True))
    writing(path, lambda: write_atomically(path, buffer.getvalue()))


def _choose(store: Store, domain: int, label: int, clips: int) -> list[int]:
    """Segments spread evenly over those of one domain and class."""
    rows = np.flatnonzero((store.segments.domain == domain) & (store.segments.label == label))
    places = np.linspace(0, len(rows) - 1, clips).round().astype(int) if len(rows) else np.zeros(0, int)
    return [int(rows[i]) for i in np.unique(places)]


def _middle(store: Store, row: int) -> tuple[int, int, int]:
    """(video, RGB frame, flow file) in the middle of a segment."""
    video, stride = int(store.segments.video[row]), store.manifest.flow.stride
    frame = int(store.segments.start[row] + store.segments.stop[row]) // 2
    first, last = store.extent("flow", video)
    return video, frame, min(max(frame // stride, first), last)


def _typical_motion(store: Store, rows: Sequence[int]) -> float:
    """Motion in pixels that gets full colour: the largest per cent of what the sheet shows, and never a jitter of
    under a pixel.
    """
    lengths = [
        np.linalg.norm(flow_motion(store, video, flow), axis=-1)[::4, ::4]
        for video, _, flow in (_middle(store, row) for row in rows)
    ]
    return max(1.0, float(np.percentile(np.stack(lengths), 99))) if lengths else 1.0


def _draw_clip(
    sheet: Image.Image, store: Store, row: int, corner: tuple[int, int], layout: _Layout, full: float
) -> None:
    video, frame, flow = _middle(store, row)
    pictures = rgb_picture(store, video, frame), colours(flow_motion(store, video, flow), full=full)
    for i, picture in enumerate(pictures):
        small = Image.fromarray(picture).resize((layout.width, layout.height), Image.Resampling.LANCZOS)
        sheet.paste(small, (corner[0], corner[1] + i * layout.height))
    caption = _fit(f"{store.videos[video]} @{frame}", _font(11), layout.width)
    ImageDraw.Draw(sheet).text((corner[0], corner[1] + 2 * layout.height + 1), caption, _PALE, font=_font(11))


def _draw_heading(sheet: Image.Image, store: Store, layout: _Layout, full: float) -> None:
    names, pen = store.manifest, ImageDraw.Draw(sheet)
    flow = names.flow
    title = f"{store.path.name}: {len(store.segments)} segments, {names.width}x{names.height} at {names.fps:g} frames/s"
    legend = (
        f"flow {flow.method}, stride {flow.stride}, dilation {flow.dilation}: white = still, full colour = "
        f"{full:.1f} pixels or more"
    )
    pen.text((_GAP, 4), title, _INK, font=_font(15))
    pen.text((_GAP + 34, 4 + _TEXT), legend, _PALE, font=_font(12))
    sheet.paste(Image.fromarray(_wheel(28)), (_GAP, 2 + _TEXT))
    for d, domain in enumerate(names.domains):
        count = int((store.segments.domain == d).sum())
        pen.text((layout.left(d, 0), 6 + 2 * _TEXT), f"{domain} ({count})", _INK, font=_font(15))


def _draw_names(sheet: Image.Image, names: Sequence[str], layout: _Layout) -> None:
    pen = ImageDraw.Draw(sheet)
    for c, name in enumerate(names):
        pen.text(
            (_GAP, layout.top(c) + layout.height - 10), _fit(name, _font(15), _LEFT - 2 * _GAP), _INK, font=_font(15)
        )


def _wheel(size: int) -> Picture:
    """Legend of the colours: each place has the colour of a motion from the centre to it."""
    place = (np.arange(size, dtype=np.float32) - size / 2 + 0.5) / (size / 2)
    motion = np.stack(np.meshgrid(place, place), axis=-1)
    outside = np.linalg.norm(motion, axis=-1, keepdims=True) > 1
    return np.where(outside, np.uint8(255), colours(motion, full=1.0)).astype(np.uint8)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """`text`, its beginning cut off where it is wider than `width` pixels."""
    while font.getlength(text) > width and len(text) > 2:
        text = "…" + text[2:]
    return text
