"""Optical flow in EPIC-KITCHENS' convention (spec 4.3): which pairs of frames, and how motion becomes a grey byte."""

from collections import deque
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mmsada_hpc.data.manifest import FlowConvention

METHODS = ("dis", "tvl1")
Grey = NDArray[np.uint8]
Motion = NDArray[np.float32]


def estimator(method: str) -> Callable[[Grey, Grey], Motion]:
    """A function (H,W) uint8, (H,W) uint8 -> (H,W,2) float32: motion in pixels (x to the right, y down) from the
    first to the second image.
    """
    engine: Any
    if method == "tvl1":
        engine = cv2.optflow.DualTVL1OpticalFlow.create()
    else:
        engine = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def motion(first: Grey, second: Grey) -> Motion:
        return np.asarray(engine.calc(first, second, None), np.float32)

    return motion


def to_bytes(motion: NDArray[np.floating], *, bound: float) -> Grey:
    """Pixels of motion -> bytes of the same shape: round(255*(clip(f,-bound,bound)+bound)/(2*bound)); no motion is
    128 (spec 4.3).
    """
    clipped = np.clip(motion.astype(np.float64), -bound, bound)
    return np.floor(255 * (clipped + bound) / (2 * bound) + 0.5).astype(np.uint8)


def to_pixels(grey: NDArray[np.uint8], *, bound: float) -> Motion:
    """Inverse of `to_bytes` up to rounding, with byte 128 exactly no motion."""
    return (grey.astype(np.float32) - 128) * np.float32(2 * bound / 255)


class FlowStream:
    """Takes the grey frames of a video one by one and gives flow file t as soon as RGB frame stride*(t+dilation) is
    there.
    """

    def __init__(self, convention: FlowConvention) -> None:
        self._convention = convention
        self._estimate = estimator(convention.method)
        self._span = convention.stride * convention.dilation
        self._recent: deque[Grey] = deque(maxlen=self._span + 1)
        self._seen = 0

    def push(self, grey: Grey) -> tuple[Grey, Grey] | None:
        """Add the next frame, (H,W) uint8; returns (u, v) as bytes, (H,W) each, when it completes a pair."""
        self._recent.append(grey)
        self._seen += 1
        if self._seen % self._convention.stride or self._seen // self._convention.stride <= self._convention.dilation:
            return None
        coded = to_bytes(self._estimate(self._recent[0], grey), bound=self._convention.bound)
        return np.ascontiguousarray(coded[..., 0]), np.ascontiguousarray(coded[..., 1])
