"""Which frames a window holds, and which crop of them is seen (spec 4.4, 4.5). Plain integer arithmetic on arrays, no
randomness.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

# TSN scale jitter: sides relative to the short side of the frame; pairs whose indices are at most one apart (spec 4.5).
_SCALES = (1.0, 0.875, 0.75)
SIZE_PAIRS = tuple((a, b) for a in range(3) for b in range(3) if abs(a - b) <= 1)
OFFSETS = {"released": (0, 2), "tsn": (0, 2, 4)}
_TEST_SCALE = 0.875  # 224 of 256


@dataclass(frozen=True)
class WindowRule:
    """EPIC's window rule, generalised from 16 frames at step 2 of 60 fps to any number, step and flow stride.

    Frame numbers are 1-based. A window with centre c holds RGB frames c - half, c - half + step, ... and flow files n
    // flow_stride of the same n.
    """

    num_frames: int
    rgb_step: int
    flow_stride: int

    @property
    def half(self) -> int:
        return self.num_frames // 2 * self.rgb_step

    def bounds(self, start: Ints, stop: Ints) -> tuple[Ints, Ints]:
        """Smallest and largest window centre of each segment (inclusive). A segment shorter than a window gives its own
        ends: the window may leave it.
        """
        lo, hi = start + self.half, stop + 1 - self.half
        short = lo >= hi
        lo, hi = np.where(short, start, lo), np.where(short, stop, hi)
        lo = np.maximum(lo, self.half + self.flow_stride)  # the first flow file is number 1
        return lo, np.maximum(lo, hi)

    def test_centres(self, start: Ints, stop: Ints, windows: int) -> Ints:
        """`(segments, windows)`: the interior points of `windows + 2` evenly spaced ones."""
        lo, hi = self.bounds(start, stop)
        return np.linspace(lo, hi, windows + 2, dtype=np.int64, axis=-1)[:, 1:-1]

    def rgb_frames(self, centre: int) -> Ints:
        return centre - self.half + self.rgb_step * np.arange(self.num_frames, dtype=np.int64)

    def flow_frames(self, centre: int) -> Ints:
        return self.rgb_frames(centre) // self.flow_stride


def crop_sides(height: int, width: int) -> Ints:
    """The three crop sides in pixels; 256, 224, 192 for EPIC's 256x456."""
    return np.array([int(min(height, width) * scale) for scale in _SCALES], dtype=np.int64)


def train_boxes(height: int, width: int, pair: Ints, y_step: Ints, x_step: Ints) -> Ints:
    """`(N, 4)` boxes y, x, height, width.

    Args:
        pair: `(N,)` index into `SIZE_PAIRS`.
        y_step, x_step: `(N,)` offset in quarters of the free space, from `OFFSETS`.
    """
    sides = crop_sides(height, width)[np.array(SIZE_PAIRS)[pair]]
    free = np.array([height, width]) - sides
    corner = np.stack([y_step, x_step], axis=1) * (free // 4)
    return np.concatenate([corner, sides], axis=1)


def centre_box(height: int, width: int) -> Ints:
    """`(4,)`: the centre crop, 224 of EPIC's 256."""
    side = int(min(height, width) * _TEST_SCALE)
    return np.array([(height - side) // 2, (width - side) // 2, side, side], dtype=np.int64)
