"""Flow follows EPIC-KITCHENS' convention: which pair of frames, which byte."""

from itertools import pairwise

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from mmsada_hpc.data.flow import FlowStream, to_bytes, to_pixels
from mmsada_hpc.data.manifest import FlowConvention


def moving_texture(step: int, frames: int) -> list[NDArray[np.uint8]]:
    """A smooth random texture that moves `step` pixels to the right each frame."""
    noise = np.random.Generator(np.random.PCG64(1)).integers(0, 255, (96, 400), dtype=np.uint8)
    wide = cv2.GaussianBlur(noise, (0, 0), 2)
    wide = cv2.normalize(wide, np.empty_like(wide), 0, 255, cv2.NORM_MINMAX)
    return [np.ascontiguousarray(wide[:, 200 - step * i : 328 - step * i]).astype(np.uint8) for i in range(frames)]


def test_no_motion_is_128_and_the_bounds_are_0_and_255() -> None:
    assert to_bytes(np.array([0.0, -25.0, 25.0, -99.0, 99.0]), bound=25).tolist() == [128, 0, 255, 0, 255]


def test_bytes_give_the_motion_back_within_a_step() -> None:
    motion = np.linspace(-25, 25, 101).astype(np.float32)
    assert np.abs(to_pixels(to_bytes(motion, bound=25), bound=25) - motion).max() <= 50 / 255
    assert to_pixels(np.array([128], np.uint8), bound=25)[0] == 0


@pytest.mark.parametrize("method", ["dis", "tvl1"])
def test_flow_spans_stride_times_dilation_frames(method: str) -> None:
    stream = FlowStream(FlowConvention(method))
    pairs = [pair for frame in moving_texture(1, 9) if (pair := stream.push(frame)) is not None]
    assert len(pairs) == 1  # of 9 frames, file 1 is frame 2 to frame 8
    u, v = (to_pixels(grey, bound=25)[16:-16, 16:-16] for grey in pairs[0])
    assert abs(float(np.median(u)) - 6) < 0.3
    assert abs(float(np.median(v))) < 0.2


@pytest.mark.parametrize(("stride", "dilation"), [(2, 3), (1, 1), (3, 2)])
def test_the_number_of_files_and_their_frames_follow_the_convention(stride: int, dilation: int) -> None:
    convention = FlowConvention("dis", 25.0, stride, dilation)
    stream = FlowStream(convention)
    given = [n for n, frame in enumerate(moving_texture(1, 20), 1) if stream.push(frame) is not None]
    assert given == [stride * (t + dilation) for t in range(1, len(given) + 1)]
    assert len(given) == convention.count(20)
    assert all(later - earlier == stride for earlier, later in pairwise(given))


def test_the_last_usable_frame_is_the_last_whose_flow_file_exists() -> None:
    convention = FlowConvention("dis")
    files = convention.count(40)
    assert files == 17
    assert convention.last_frame(files) // 2 == files
    assert (convention.last_frame(files) + 1) // 2 == files + 1
