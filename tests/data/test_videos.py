"""Clips of any size leave as one size, and what is stored is what was filmed."""

import io
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from mmsada_hpc.data.sheet import rgb_picture
from mmsada_hpc.data.store import Store
from mmsada_hpc.data.videos import cover, decode


@pytest.mark.parametrize("shape", [(64, 80), (40, 300), (300, 40), (31, 33), (480, 640), (65, 80)])
def test_every_shape_is_cut_to_the_size_asked_for(shape: tuple[int, int]) -> None:
    assert cover(np.zeros((*shape, 3), np.uint8), height=64, width=80).shape == (64, 80, 3)


def test_no_border_is_added() -> None:
    for shape in ((40, 300), (300, 40), (31, 33), (257, 455)):
        assert cover(np.full((*shape, 3), 200, np.uint8), height=64, width=80).min() == 200


def test_the_centre_is_kept() -> None:
    image = np.zeros((100, 400, 3), np.uint8)
    image[:, 195:205] = 255
    cut = cover(image, height=64, width=80)
    assert cut[:, 38:42].mean() > 200
    assert cut[:, :20].max() == 0


def test_shrinking_is_antialiased() -> None:
    checkers = np.indices((512, 640)).sum(axis=0)[..., None].repeat(3, axis=2) % 2 * 255
    assert np.abs(cover(checkers.astype(np.uint8), height=64, width=80).astype(int) - 127).max() <= 2


def test_pixels_that_are_not_square_are_made_square() -> None:
    image = np.zeros((64, 40, 3), np.uint8)
    image[:, 18:22] = 255
    cut = cover(image, height=64, width=80, pixel_aspect=Fraction(2))
    assert (cut[32, :, 0] > 127).sum() == 8


def test_stored_jpegs_look_like_the_video(tiny_store: Store, tiny_videos: Path) -> None:
    video = tiny_store.videos.index("east/across_00")
    frames = [image for _, image in decode(tiny_videos / "east/across_00.webm", height=64, width=80)]
    assert len(frames) == 40
    assert tiny_store.extent("rgb", video) == (1, 40)
    for n in (1, 17, 40):
        stored = cv2.imdecode(tiny_store.read_frames("rgb", video, [n])[0], cv2.IMREAD_COLOR)
        assert stored is not None
        assert np.abs(stored.astype(int) - frames[n - 1]).mean() < 6


def test_stored_video_has_the_same_frame_numbers(tiny_store: Store, tiny_video_store: Store) -> None:
    for video in (0, 20):
        assert tiny_video_store.extent("rgb", video) == tiny_store.extent("rgb", video)
        for n in (1, 9, 40):
            jpeg, vp9 = (rgb_picture(store, video, n).astype(int) for store in (tiny_store, tiny_video_store))
            assert np.abs(jpeg - vp9).mean() < 10


def test_stored_video_has_a_keyframe_every_eight_frames(tiny_video_store: Store) -> None:
    with av.open(io.BytesIO(tiny_video_store.read_video(0).tobytes()), "r") as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "vp9"
        keys = [packet.is_keyframe for packet in container.demux(stream) if packet.size]
    assert len(keys) == 40
    assert [i for i, key in enumerate(keys) if key] == [0, 8, 16, 24, 32]


def test_flow_is_the_same_for_both_forms_of_rgb(tiny_store: Store, tiny_video_store: Store) -> None:
    for video in (1, 19):
        both = (store.read_frames("flow", video, range(1, 18)) for store in (tiny_store, tiny_video_store))
        assert len({b"".join(view.tobytes() for view in views) for views in both}) == 1


def test_flow_shows_the_motion_of_each_class(tiny_store: Store) -> None:
    def mean_motion(name: str) -> tuple[float, float]:
        coded = tiny_store.read_frames("flow", tiny_store.videos.index(name), [8])
        u, v = (cv2.imdecode(one, cv2.IMREAD_GRAYSCALE) for one in coded)
        assert u is not None
        assert v is not None
        return float(u.max()) - 128, float(v.max()) - 128

    across, down, still = (mean_motion(f"east/{name}") for name in ("across_00", "down_01", "still_02"))
    assert across[0] > 20 > across[1]
    assert down[1] > 20 > down[0]
    assert max(still) < 10
