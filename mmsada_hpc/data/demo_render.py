"""From a kitchen, a verb and a number to frames: camera, worktop, light."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from mmsada_hpc.data.demo_gestures import FloatArray, draw_scene, shapes_at
from mmsada_hpc.data.demo_kitchens import KITCHENS, VERBS, Difficulty, KitchenStyle

_WORLD = 3.0  # the worktop reaches this far from the middle
_TEXTURE = 288  # its pixels along one side
_SUBPIXEL = 4  # fractional bits of polygon corners


@dataclass(frozen=True)
class ClipKey:
    """Which clip: together with the seed and the format, all that a clip depends on."""

    kitchen: str
    split: str  # "train" | "test"
    verb: str
    index: int


def clip_generator(seed: int, key: ClipKey) -> np.random.Generator:
    """The random numbers of one clip, from the Philox key (seed, clip).

    NumPy does not promise its `Generator` streams across releases, so another NumPy may render other clips from the
    same seed. That is fine here: the rendered videos are an input like any other, unlike the training plan, which uses
    raw Philox words only.
    """
    split = ("train", "test").index(key.split)
    number = (((list(KITCHENS).index(key.kitchen) * 2 + split) * len(VERBS) + VERBS.index(key.verb)) << 32) + key.index
    return np.random.Generator(np.random.Philox(key=np.array([seed, number], dtype=np.uint64)))


def render_clip(
    seed: int, key: ClipKey, *, height: int, width: int, frames: int, fps: float, dials: Difficulty | None = None
) -> NDArray[np.uint8]:
    """Render one clip: (frames, height, width, 3) uint8 RGB. Gestures keep their speed in seconds at any `fps`."""
    dials = dials or Difficulty()
    style = KITCHENS[key.kitchen]
    rng = clip_generator(seed, key)
    tick = 30.0 / fps
    scene = draw_scene(rng, key.verb, style, dials, frames=max(1, round(frames * tick)))
    cameras = _cameras(rng, style, dials, height=height, width=width, times=np.arange(frames) / fps)
    worktop = _worktop(rng, style)
    light = _light(rng, style, dials, height=height, width=width)
    curve = (255 * np.linspace(0, 1, 256) ** style.gamma).round().astype(np.uint8)
    grain = np.repeat(rng.normal(0, style.noise, size=(2 * height, 2 * width, 1)).round().astype(np.int16), 3, axis=2)
    clip = np.empty((frames, height, width, 3), np.uint8)
    for number in range(frames):
        canvas = _worktop_seen(worktop, cameras[number], height=height, width=width)
        for shape in shapes_at(scene, number * tick):
            corners = _project(cameras[number], shape.outline)
            cv2.fillPoly(canvas, [corners], shape.rgb, lineType=cv2.LINE_AA, shift=_SUBPIXEL)
        top, left = rng.integers(0, height), rng.integers(0, width)
        clip[number] = _lit(canvas, light, curve, grain[top : top + height, left : left + width])
    return clip


def _cameras(
    rng: np.random.Generator, style: KitchenStyle, dials: Difficulty, *, height: int, width: int, times: FloatArray
) -> FloatArray:
    """World to pixel for every frame, (frames, 3, 3): foreshortening, roll, zoom, sway of a hand-held camera."""
    tilt = math.radians(style.tilt_deg + rng.normal(0, dials.tilt_spread_deg))
    pitch = style.pitch + rng.uniform(-1, 1) * dials.pitch_spread
    zoom = style.zoom * (1 + rng.uniform(-1, 1) * dials.zoom_spread) * min(height, width) / 2
    sway = style.shake * _sway(rng, times, style.shake_hz)
    foreshorten = np.array([[1.0, 0, 0], [0, 1, 0], [0, -pitch, 1]])
    cameras = np.empty((len(times), 3, 3))
    for number, (dx, dy, roll) in enumerate(sway.T):
        c, s = zoom * math.cos(tilt + 0.5 * roll), zoom * math.sin(tilt + 0.5 * roll)
        view = np.array([[c, -s, width / 2 + zoom * dx], [s, c, height / 2 + zoom * dy], [0, 0, 1]])
        cameras[number] = view @ foreshorten
    return cameras


def _sway(rng: np.random.Generator, times: FloatArray, hz: float) -> FloatArray:
    """Three smooth wanderings of about unit standard deviation, (3, frames)."""
    rates = hz * rng.uniform(0.5, 2.0, size=(3, 4, 1))
    phases = rng.uniform(0, 2 * math.pi, size=(3, 4, 1))
    return np.asarray(np.sin(2 * math.pi * rates * times + phases).sum(axis=1) / math.sqrt(2))


def _project(camera: FloatArray, outline: FloatArray) -> NDArray[np.int32]:
    seen = np.column_stack([outline, np.ones(len(outline))]) @ camera.T
    return np.round(seen[:, :2] / seen[:, 2:] * (1 << _SUBPIXEL)).astype(np.int32)


def _worktop(rng: np.random.Generator, style: KitchenStyle) -> NDArray[np.uint8]:
    """The worktop from above, (_TEXTURE, _TEXTURE, 3) uint8: one pattern a kitchen, laid differently in every clip."""
    y, x = np.mgrid[0:_TEXTURE, 0:_TEXTURE] / (_TEXTURE / (2 * _WORLD))
    x, y = x + rng.uniform(), y + rng.uniform()
    soft = cv2.GaussianBlur(rng.normal(size=(_TEXTURE, _TEXTURE)), (0, 0), 3.0) * 8
    if style.pattern == "planks":
        shade = np.where((y % 0.5) < 0.03, -1.0, 0.0) + 0.4 * np.sin(9 * (y // 0.5)) + 0.25 * soft
    elif style.pattern == "tiles":
        shade = np.where(((y % 0.4) < 0.05) | ((x % 0.4) < 0.05), -1.0, 0.25 * np.sin(5 * (y // 0.4) + 11 * (x // 0.4)))
    elif style.pattern == "granite":
        shade = soft + 0.8 * cv2.GaussianBlur(rng.normal(size=soft.shape), (0, 0), 0.8)
    else:
        shade = 0.2 * soft
    base = np.asarray(style.worktop_rgb) * (1 + rng.uniform(-0.08, 0.08))
    return np.clip(base * (1 + style.contrast * 0.6 * shade[..., None]), 0, 255).astype(np.uint8)


def _worktop_seen(worktop: NDArray[np.uint8], camera: FloatArray, *, height: int, width: int) -> NDArray[np.uint8]:
    unit = 2 * _WORLD / _TEXTURE
    laid = camera @ np.array([[unit, 0, -_WORLD], [0, unit, -_WORLD], [0, 0, 1]])
    return np.asarray(
        cv2.warpPerspective(worktop, laid, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT),
        dtype=np.uint8,
    )


def _light(
    rng: np.random.Generator, style: KitchenStyle, dials: Difficulty, *, height: int, width: int
) -> NDArray[np.float32]:
    """Gain of every pixel, (height, width, 3): colour of the light, dark corners, a soft shadow across the frame."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    angle, place = rng.uniform(0, 2 * math.pi), rng.uniform(-0.4, 0.4)
    across = x * math.cos(angle) + y * math.sin(angle) - place
    gain = (1 - style.vignette * np.clip((x * x + y * y) / 2, 0, 1)) * (1 - style.shadow / (1 + np.exp(-across * 12)))
    brightness = 1 + rng.uniform(-1, 1) * dials.light_spread
    return (brightness * gain[..., None] * np.asarray(style.light_rgb)).astype(np.float32)


def _lit(
    canvas: NDArray[np.uint8], light: NDArray[np.float32], curve: NDArray[np.uint8], grain: NDArray[np.int16]
) -> NDArray[np.uint8]:
    lit = cv2.LUT(cv2.multiply(canvas, light, dtype=cv2.CV_8U), curve)
    return np.asarray(cv2.add(lit, grain, dtype=cv2.CV_8U), dtype=np.uint8)
