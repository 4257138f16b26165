"""`check-data` finds each defect, in raw EPIC folders and in a store, names file and frame, and goes on."""

import csv
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mmsada_hpc.cli import main
from mmsada_hpc.data.check import CheckOptions, check
from mmsada_hpc.data.jpeg_check import find_fault
from mmsada_hpc.data.prepare import PrepareOptions, prepare
from mmsada_hpc.data.store import Store
from mmsada_hpc.data.tables import INDEX_DTYPE
from mmsada_hpc.errors import UserError
from tests.data.test_epic import FRAMES, RGB, SEGMENTS, drop, drop_both, folders, jpeg, replaced, tars

Found = set[tuple[str, str, int, int]]


@pytest.fixture
def raw(tmp_path: Path) -> CheckOptions:
    """Raw EPIC folders of one video, without a fault."""
    root = tmp_path / "epic"
    folders(root)
    (tmp_path / "D2_train.csv").write_text(SEGMENTS)
    return CheckOptions(epic_frames=root, segments=(f"D2/train={tmp_path}/D2_train.csv",), workers=1)


def found(options: CheckOptions) -> Found:
    """(kind, stream, first frame, last frame) of every problem."""
    return {(p.kind, p.stream, p.frame, p.last) for p in check(options).problems}


def root_of(options: CheckOptions) -> Path:
    assert options.epic_frames is not None
    return options.epic_frames


def corrupt(payload: bytes) -> bytes:
    """A JPEG whose coefficients are noise; size, header and end marker stay."""
    middle = len(payload) // 2
    return payload[:middle] + b"\xff\xd0\x12\xff\xd3" * 20 + payload[middle + 100 :]


def test_data_without_a_fault_has_no_problems(raw: CheckOptions) -> None:
    checked = check(raw)
    assert checked.problems == []
    assert (checked.videos, checked.decoded) == (1, FRAMES + 2 * 39)


def test_tars_are_checked_like_folders(raw: CheckOptions) -> None:
    shutil.rmtree(root_of(raw))
    tars(root_of(raw))
    assert check(raw).problems == []
    assert check(raw).decoded == FRAMES + 2 * 39


DEFECTS: list[tuple[Callable[[Path], object], Found]] = [
    (drop("rgb/P01/P01_01", 20, 22), {("missing frame", "rgb", 20, 22)}),
    (drop("flow/P01/P01_01/v", 7, 7), {("missing frame", "flow v", 7, 7)}),
    (drop_both(12, 13), {("missing frame", "flow", 12, 13)}),
    (drop("rgb/P01/P01_01", 3, 3), set()),  # a hole that no segment needs
    (
        drop_both(30, 39),
        {("RGB and flow of different length", "flow", 29, 29), ("segment past the end", "flow", 29, 29)},
    ),
    (
        drop("rgb/P01/P01_01", 50, FRAMES),
        {("RGB and flow of different length", "rgb", 49, 49), ("segment past the end", "rgb", 49, 49)},
    ),
    (
        replaced("rgb/P01/P01_01/frame_0000000005.jpg", RGB[5][:-70]),
        {("truncated file", "rgb", 5, 5)},
    ),
    (replaced("rgb/P01/P01_01/frame_0000000006.jpg", b""), {("truncated file", "rgb", 6, 6)}),
    (replaced("rgb/P01/P01_01/frame_0000000001.jpg", b"<html>"), {("unreadable JPEG", "rgb", 1, 1)}),
    (replaced("rgb/P01/P01_01/frame_0000000080.jpg", corrupt(RGB[80])), {("unreadable JPEG", "rgb", 80, 80)}),
    (replaced("flow/P01/P01_01/u/frame_0000000009.jpg", jpeg(1)), {("unreadable JPEG", "flow u", 9, 9)}),
    (replaced("rgb/P01/P01_01/frame_0000000033.jpg", jpeg(1, height=40)), {("wrong size", "rgb", 33, 33)}),
    (
        replaced("flow/P01/P01_01/v/frame_0000000033.jpg", jpeg(1, height=40, grey=True)),
        {("wrong size", "flow v", 33, 33)},
    ),
    (lambda root: shutil.rmtree(root / "flow"), {("missing frame", "flow", 0, 0)}),
    (replaced("rgb/again/P01_01/frame_0000000001.jpg", RGB[1]), {("frames there twice", "", 0, 0)}),
]


@pytest.mark.parametrize(("spoil", "expected"), DEFECTS)
def test_each_defect_of_raw_frames_is_found(
    raw: CheckOptions, spoil: Callable[[Path], object], expected: Found
) -> None:
    spoil(root_of(raw))
    assert found(raw) == expected


def test_it_goes_on_after_the_first_problem(raw: CheckOptions, tmp_path: Path) -> None:
    (tmp_path / "D2_train.csv").write_text(SEGMENTS + "9,P01,P01_02,10,60,take,0\n")
    root = root_of(raw)
    drop("rgb/P01/P01_01", 20, 20)(root)
    replaced("rgb/P01/P01_01/frame_0000000030.jpg", b"<html>")(root)
    replaced("flow/P01/P01_01/v/frame_0000000039.jpg", corrupt(jpeg(2, grey=True)))(root)
    problems = check(raw).problems
    assert [(p.video, p.stream, p.frame) for p in problems] == [
        ("P01_01", "rgb", 20),
        ("P01_01", "rgb", 30),
        ("P01_01", "flow v", 39),
        ("P01_02", "rgb", 0),
        ("P01_02", "flow", 0),
    ]
    assert problems[0].file == str(root / "rgb/P01/P01_01/frame_0000000020.jpg")
    assert "needed by segment 7 (frames 10 to 60)" in problems[0].what


def test_a_segment_past_the_end_is_named(raw: CheckOptions, tmp_path: Path) -> None:
    (tmp_path / "D2_train.csv").write_text(SEGMENTS + "9,P01,P01_01,60,96,take,0\n")
    problems = [p for p in check(raw).problems if p.stream == "rgb"]
    assert [p.kind for p in problems] == ["segment past the end"]
    assert problems[0].what == "segment 9 (frames 60 to 96) needs rgb frames 60 to 95, there are 1 to 80"


def test_a_broken_tar_does_not_hide_the_other_stream(raw: CheckOptions) -> None:
    shutil.rmtree(root_of(raw))
    tars(root_of(raw))
    tar = root_of(raw) / "flow/train/P01/P01_01.tar"
    tar.write_bytes(tar.read_bytes()[: 512 * 20 + 100])
    checked = check(raw)
    assert [(p.stream, p.file) for p in checked.problems] == [("flow", str(tar))]
    assert checked.decoded == FRAMES


def test_worker_processes_find_the_same(raw: CheckOptions) -> None:
    replaced("rgb/P01/P01_01/frame_0000000033.jpg", jpeg(1, height=40))(root_of(raw))
    alone = check(raw)
    assert check(CheckOptions(epic_frames=raw.epic_frames, segments=raw.segments, workers=2)) == alone
    assert len(alone.problems) == 1


def test_a_sample_decodes_few_frames_with_the_first_and_the_last(raw: CheckOptions) -> None:
    for n in (1, 2, FRAMES):
        replaced(f"rgb/P01/P01_01/frame_{n:010d}.jpg", b"<html>")(root_of(raw))
    checked = check(CheckOptions(epic_frames=raw.epic_frames, segments=raw.segments, workers=1, sample=5))
    assert checked.decoded == 15
    assert [(p.frame, p.last) for p in checked.problems] == [(1, 1), (FRAMES, FRAMES)]


def test_the_command_lists_everything_and_says_so_by_its_exit_code(
    raw: CheckOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listing = tmp_path / "problems.csv"
    command = ["check-data", "--epic-frames", str(raw.epic_frames), "--segments", *raw.segments, "--workers", "1"]
    assert main(command) == 0
    assert "1 videos; frames: 80 rgb, 39 flow u, 39 flow v; 158 decoded\n  no problems" in capsys.readouterr().out
    for n in range(1, FRAMES, 2):
        replaced(f"rgb/P01/P01_01/frame_{n:010d}.jpg", b"<html>")(root_of(raw))
    assert main([*command, "--list", str(listing)]) == 1
    printed = capsys.readouterr().out
    assert "40 problems in 1 video" in printed
    assert "not a JPEG file (and 39 more like it)" in printed
    assert f"1 of 40 are shown; all are in {listing}" in printed
    rows = list(csv.DictReader(listing.read_text().splitlines()))
    assert [row["frame"] for row in rows] == [str(n) for n in range(1, FRAMES, 2)]
    assert rows[0]["file"].endswith("rgb/P01/P01_01/frame_0000000001.jpg")
    assert (rows[0]["kind"], rows[0]["what"]) == ("unreadable JPEG", "not a JPEG file")


@pytest.mark.parametrize("arguments", [[], ["somewhere", "--epic-frames", "x", "--segments", "D1/train=x"]])
def test_it_must_be_told_what_to_check(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-data", *arguments]) == 2
    assert "say what to check" in capsys.readouterr().err


@pytest.fixture
def stored(raw: CheckOptions, tmp_path: Path) -> Path:
    """The raw video as a store."""
    prepare(PrepareOptions(tmp_path / "store", epic_frames=raw.epic_frames, segments=raw.segments, workers=1))
    return tmp_path / "store"


@pytest.mark.parametrize("form", ["tiny_store", "tiny_video_store"])
def test_a_good_store_has_no_problems(form: str, request: pytest.FixtureRequest) -> None:
    store: Store = request.getfixturevalue(form)
    checked = check(CheckOptions(store.path, workers=1))
    assert checked.problems == []
    assert checked.counts["rgb"] == 32 * 40


def overwrite(store: Path, stream: str, frame: int, payload: bytes) -> None:
    """Put other bytes where a frame lies, with a checksum that fits them, as if they had been packed."""
    index = np.load(store / f"index.{stream}.npy")
    row = index[(frame - 1) * (2 if stream == "flow" else 1)]
    assert len(payload) <= row["length"]
    with open(store / f"{stream}-00000.tar", "r+b") as file:
        file.seek(int(row["offset"]))
        file.write(payload)
    row["length"], row["crc"] = len(payload), zlib.crc32(payload)
    np.save(store / f"index.{stream}.npy", index)


def no_frame(store: Path, stream: str, frame: int) -> None:
    index = np.load(store / f"index.{stream}.npy")
    index[(frame - 1) * (2 if stream == "flow" else 1)] = np.zeros((), INDEX_DTYPE)
    np.save(store / f"index.{stream}.npy", index)


def flip(store: Path, stream: str, frame: int) -> None:
    row = np.load(store / f"index.{stream}.npy")[frame - 1]
    with open(store / f"{stream}-00000.tar", "r+b") as file:
        file.seek(int(row["offset"]) + 300)
        file.write(b"\x00\x01\x02")


STORE_DEFECTS: list[tuple[Callable[[Path], object], Found]] = [
    (lambda store: flip(store, "rgb", 30), {("damaged store", "rgb", 30, 30)}),
    (lambda store: no_frame(store, "rgb", 30), {("missing frame", "rgb", 30, 30)}),
    (lambda store: no_frame(store, "flow", 20), {("missing frame", "flow", 20, 20)}),
    (lambda store: no_frame(store, "rgb", 2), set()),  # no segment needs it
    (lambda store: overwrite(store, "rgb", 7, RGB[7][:-70]), {("truncated file", "rgb", 7, 7)}),
    (lambda store: overwrite(store, "rgb", 7, corrupt(RGB[7])), {("unreadable JPEG", "rgb", 7, 7)}),
    (lambda store: overwrite(store, "rgb", 7, jpeg(1, height=16)), {("wrong size", "rgb", 7, 7)}),
    (
        lambda store: retable(store, "segments.csv", ",60,5", ",99,5"),
        {("segment past the end", "rgb", 80, 80), ("segment past the end", "flow", 39, 39)},
    ),
    (
        lambda store: retable(store, "videos.csv", "flow-00000.tar,0,1,39", "flow-00000.tar,0,1,35"),
        {("RGB and flow of different length", "flow", 35, 35), ("segment past the end", "flow", 35, 35)},
    ),
]


def retable(store: Path, name: str, old: str, new: str) -> None:
    text = (store / name).read_text()
    assert old in text
    (store / name).write_text(text.replace(old, new))


@pytest.mark.parametrize(("spoil", "expected"), STORE_DEFECTS)
def test_each_defect_of_a_store_is_found(stored: Path, spoil: Callable[[Path], object], expected: Found) -> None:
    spoil(stored)
    assert found(CheckOptions(stored, workers=1)) == expected


def test_a_cut_off_shard_does_not_hide_the_rest(stored: Path) -> None:
    shard = stored / "rgb-00000.tar"
    os.truncate(shard, shard.stat().st_size // 2)
    overwrite(stored, "flow", 20, b"<html>")
    problems = check(CheckOptions(stored, workers=1)).problems
    assert (problems[0].file, problems[0].frame) == (str(shard), 0)
    assert "store.json says" in problems[0].what
    lost = [p for p in problems if p.stream == "rgb"]
    assert lost[-1].last == FRAMES
    assert all("truncated" in p.what for p in lost)
    assert len(lost) == 1  # one row for a run of frames
    assert [(p.kind, p.frame) for p in problems if p.stream == "flow"] == [("unreadable JPEG", 20)]


def test_a_missing_shard_is_named(stored: Path) -> None:
    (stored / "flow-00000.tar").unlink()
    problems = check(CheckOptions(stored, workers=1)).problems
    assert problems[0].file == str(stored / "flow-00000.tar")
    assert {p.stream for p in problems[1:]} == {"flow"}


def test_a_damaged_table_ends_the_check(stored: Path) -> None:
    os.truncate(stored / "index.rgb.npy", 1000)
    with pytest.raises(UserError, match=r"index\.rgb\.npy: 1000 bytes, store\.json says"):
        check(CheckOptions(stored, workers=1))


def test_every_real_frame_decodes(shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "D2_train.csv").write_text(SEGMENTS.replace(",40,80,", ",40,100,"))
    options = CheckOptions(
        epic_frames=shared_data / "epic_frames_sample", segments=(f"D2/train={tmp_path}/D2_train.csv",), workers=1
    )
    checked = check(options)
    assert checked.decoded == 300
    # The sample holds frames 1 to 100 of both streams: its RGB is cut off, and nothing else is wrong.
    assert [(p.kind, p.frame) for p in checked.problems] == [("RGB and flow of different length", 100)]


def test_a_real_frame_cut_off_or_corrupt_is_found(shared_data: Path) -> None:
    payload = (shared_data / "epic_frames_sample/sample_rgb/P01_01_frame_0000000030.jpg").read_bytes()
    assert find_fault(payload, size=(256, 456), components=3) is None
    assert find_fault(payload[:-1000], size=None, components=3) == (
        "truncated file",
        "a JPEG that was cut off (no end marker)",
    )
    assert find_fault(corrupt(payload), size=None, components=3) == ("unreadable JPEG", "its image data is corrupt")


def test_a_sample_of_a_store_reads_single_frames(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overwrite(stored, "rgb", FRAMES, b"<html>")
    sizes: list[int] = []
    real = os.preadv

    def counted(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        sizes.append(sum(len(buffer) for buffer in buffers))
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", counted)
    checked = check(CheckOptions(stored, workers=1, sample=4))
    assert checked.decoded == 8
    assert [(p.kind, p.frame) for p in checked.problems] == [("unreadable JPEG", FRAMES)]
    assert max(sizes) < 3 * max(map(len, RGB.values()))
