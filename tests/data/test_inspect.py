"""`inspect` tells what a store holds, draws it, and finds damage."""

import argparse
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmsada_hpc.data import inspect
from mmsada_hpc.data.sheet import colours, flow_motion, write_sheet
from mmsada_hpc.data.store import Store
from mmsada_hpc.errors import UserError


def run_command(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    inspect.add_arguments(parser)
    return inspect.run(parser.parse_args([str(argument) for argument in arguments]))


def test_counts_per_domain_split_and_class_are_printed(tiny_store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(tiny_store.path) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["domain", "split", "across", "down", "still", "all"] in lines
    assert ["east", "test", "2", "1", "1", "4"] in lines
    assert ["west", "train", "4", "4", "4", "12"] in lines


def test_an_undamaged_store_is_verified(tiny_store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(tiny_store.path, "--verify") == 0
    assert "verified" in capsys.readouterr().out


def test_a_damaged_shard_is_named(tiny_store: Store, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_store.path, tmp_path / "copy"))
    shard = copy / "flow-00001.tar"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"flow-00001.tar: damaged") as caught:
        run_command(copy, "--verify")
    assert "rgb-" not in str(caught.value)


def test_something_else_than_a_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a store"):
        run_command(tmp_path)


@pytest.mark.parametrize("form", ["tiny_store", "tiny_video_store"])
def test_the_sheet_shows_rgb_above_and_flow_below(form: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    store: Store = request.getfixturevalue(form)
    write_sheet(store, tmp_path / "new folder/sheet.png", clips=2)
    sheet = cv2.imread(str(tmp_path / "new folder/sheet.png"))
    assert sheet is not None
    assert (sheet < 250).any(axis=2).mean() > 0.2  # not an empty page
    saturation = cv2.cvtColor(sheet, cv2.COLOR_BGR2HSV)[..., 1]
    assert (saturation > 200).mean() > 0.01  # full colours: the squares that move


def test_the_colour_of_flow_is_its_direction() -> None:
    motion = np.array([[[5, 0], [-5, 0], [0, 0], [0, 2.5]]], np.float32)
    right, left, still, half_down = colours(motion, full=5.0)[0].tolist()
    assert right == [255, 0, 0]
    assert left == [0, 255, 255]
    assert still == [255, 255, 255]
    assert half_down[1] == 255
    assert 120 < half_down[2] < 135


def test_flow_is_read_in_pixels(tiny_store: Store) -> None:
    motion = flow_motion(tiny_store, tiny_store.videos.index("east/across_00"), 8)
    assert motion.shape == (64, 80, 2)
    assert 4 < motion[..., 0].max() < 12  # 1.5 pixels a frame over 6 frames, scaled by 8/9
