"""EPIC's window and crop rules, number by number (spec 4.4, 4.5)."""

import csv
from pathlib import Path

import numpy as np
import pytest

from mmsada_hpc.data.windows import OFFSETS, SIZE_PAIRS, WindowRule, centre_box, crop_sides, train_boxes

EPIC = WindowRule(num_frames=16, rgb_step=2, flow_stride=2)


def bounds(start: int, stop: int) -> tuple[int, int]:
    lo, hi = EPIC.bounds(np.array([start]), np.array([stop]))
    return int(lo[0]), int(hi[0])


def test_a_long_segment_keeps_the_window_inside() -> None:
    assert bounds(100, 200) == (116, 185)
    assert EPIC.rgb_frames(116)[0] == 100
    assert EPIC.rgb_frames(185)[-1] == 199


def test_a_short_segment_gives_its_own_ends() -> None:
    assert bounds(100, 130) == (100, 130)


def test_no_window_starts_before_the_first_flow_file() -> None:
    assert bounds(1, 200) == (18, 185)
    assert EPIC.flow_frames(18)[0] == 1


def test_rgb_and_flow_of_one_centre_cover_the_same_time() -> None:
    assert EPIC.rgb_frames(116).tolist() == list(range(100, 132, 2))
    assert EPIC.flow_frames(117).tolist() == list(range(50, 66)), "floor(n / 2), also for odd n"


def test_five_test_windows_are_the_interior_of_seven() -> None:
    assert EPIC.test_centres(np.array([100]), np.array([200]), 5).tolist() == [
        np.linspace(116, 185, 7, dtype=int)[1:-1].tolist()
    ]


def test_a_30_fps_video_takes_another_step() -> None:
    rule = WindowRule(num_frames=16, rgb_step=1, flow_stride=1)
    assert rule.rgb_frames(50).tolist() == rule.flow_frames(50).tolist() == list(range(42, 58))


@pytest.mark.parametrize(
    ("table", "short"),
    [("D1_train", 2), ("D1_test", 1), ("D2_train", 23), ("D2_test", 15), ("D3_train", 43), ("D3_test", 10)],
)
def test_the_short_segment_rule_hits_as_many_real_segments_as_the_released_code(
    shared_data: Path, table: str, short: int
) -> None:
    with open(shared_data / "epic_splits" / f"{table}.csv") as file:
        rows = list(csv.DictReader(file))
    start, stop = (np.array([int(r[c]) for r in rows]) for c in ("start_frame", "stop_frame"))
    assert int((start + 16 >= stop - 15).sum()) == short
    lo, hi = EPIC.bounds(start, stop)
    assert (lo <= hi).all()
    assert (lo >= 18).all()


def test_crops_of_an_epic_frame_are_the_published_sizes_and_offsets() -> None:
    assert crop_sides(256, 456).tolist() == [256, 224, 192]
    assert len(SIZE_PAIRS) == 7
    every = np.array([(p, y, x) for p in range(7) for y in OFFSETS["released"] for x in OFFSETS["released"]])
    boxes = train_boxes(256, 456, *every.T)
    assert set(boxes[:, 1]) == {0, 100, 116, 132}
    assert set(boxes[:, 0]) == {0, 16, 32}
    assert {tuple(b) for b in boxes[:, 2:]} == {
        (256, 256),
        (256, 224),
        (224, 256),
        (224, 224),
        (224, 192),
        (192, 224),
        (192, 192),
    }


def test_the_full_tsn_set_reaches_the_right_and_the_bottom() -> None:
    boxes = train_boxes(256, 456, np.full(3, 6), np.array([0, 2, 4]), np.array([0, 2, 4]))
    assert boxes[2].tolist() == [64, 264, 192, 192]
    assert (boxes[:, 0] + boxes[:, 2] <= 256).all()


def test_the_test_crop_is_the_centre_224() -> None:
    assert centre_box(256, 456).tolist() == [16, 116, 224, 224]
