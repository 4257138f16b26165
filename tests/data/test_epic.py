"""EPIC-KITCHENS frames are found in every layout they come in, checked, and packed byte for byte."""

import io
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmsada_hpc.data.prepare import PrepareOptions, prepare
from mmsada_hpc.data.store import Store
from mmsada_hpc.errors import UserError

FRAMES, FLOW = 80, 39  # ceil((80 - 3) / 2) flow files, as released (spec 4.3)
SEGMENTS = """uid,participant_id,video_id,start_frame,stop_frame,verb,verb_class
7,P01,P01_01,10,60,cut,5
8,P01,P01_01,40,80,wash,4
"""


def jpeg(seed: int, *, height: int = 32, width: int = 48, grey: bool = False) -> bytes:
    noise = np.random.Generator(np.random.PCG64(seed)).integers(
        0, 255, (height, width) if grey else (height, width, 3), dtype=np.uint8
    )
    return cv2.imencode(".jpg", noise)[1].tobytes()


RGB = {n: jpeg(n) for n in range(1, FRAMES + 1)}
UV = {(axis, n): jpeg(1000 * (axis == "u") + 100 + n, grey=True) for axis in "uv" for n in range(1, FLOW + 1)}


def write(path: Path, payload: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(payload)


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, payload in reversed(members.items()):
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))


def folders(root: Path) -> None:
    for n, payload in RGB.items():
        write(root / f"rgb/P01/P01_01/frame_{n:010d}.jpg", payload)
    for (axis, n), payload in UV.items():
        write(root / f"flow/P01/P01_01/{axis}/frame_{n:010d}.jpg", payload)


def tars(root: Path) -> None:
    write_tar(root / "rgb/train/P01/P01_01.tar", {f"./frame_{n:010d}.jpg": payload for n, payload in RGB.items()})
    write_tar(
        root / "flow/train/P01/P01_01.tar", {f"./{a}/frame_{n:010d}.jpg": payload for (a, n), payload in UV.items()}
    )


def flat(root: Path) -> None:
    for n, payload in RGB.items():
        write(root / f"sample_rgb/P01_01_frame_{n:010d}.jpg", payload)
    for (axis, n), payload in UV.items():
        write(root / f"sample_flow/P01_01_flow_{axis}_{n:010d}.jpg", payload)


def linked_folders(root: Path) -> None:
    folders(root / "disk")
    (root / "frames").mkdir()
    for stream in ("rgb", "flow"):
        (root / "frames" / stream).symlink_to(root / "disk" / stream)
    (root / "frames/loop").symlink_to(root / "frames")
    shutil.move(root / "disk", root.with_name("elsewhere"))
    for stream in ("rgb", "flow"):
        (root / "frames" / stream).unlink()
        (root / "frames" / stream).symlink_to(root.with_name("elsewhere") / stream)


@pytest.fixture
def options(tmp_path: Path) -> PrepareOptions:
    root = tmp_path / "epic"
    root.mkdir()
    (tmp_path / "D2_train.csv").write_text(SEGMENTS)
    return PrepareOptions(
        tmp_path / "store", epic_frames=root, segments=(f"D2/train={tmp_path}/D2_train.csv",), workers=1
    )


def root_of(options: PrepareOptions) -> Path:
    assert options.epic_frames is not None
    return options.epic_frames


@pytest.mark.parametrize("layout", [folders, tars, flat, linked_folders])
def test_frames_are_packed_byte_for_byte_from_every_layout(
    options: PrepareOptions, layout: Callable[[Path], None]
) -> None:
    layout(root_of(options))
    prepare(options)
    store = Store.open(options.out)
    assert [view.tobytes() for view in store.read_frames("rgb", 0, range(1, FRAMES + 1))] == list(RGB.values())
    assert [v.tobytes() for v in store.read_frames("flow", 0, range(1, FLOW + 1))] == [
        UV[a, n] for n in range(1, FLOW + 1) for a in "uv"
    ]


def test_the_manifest_says_what_epic_is(options: PrepareOptions) -> None:
    folders(root_of(options))
    prepare(options)
    store = Store.open(options.out)
    manifest = store.manifest
    assert manifest.classes == ("take", "put", "open", "close", "wash", "cut", "mix", "pour")
    assert (manifest.kind, manifest.fps, manifest.height, manifest.width) == ("epic", 60.0, 32, 48)
    assert (manifest.flow.stride, manifest.flow.dilation, manifest.flow.bound) == (2, 3, 25.0)
    assert manifest.frames == {"rgb": FRAMES, "flow": 2 * FLOW}
    segments = store.segments
    assert (segments.uid.tolist(), segments.start.tolist(), segments.stop.tolist(), segments.label.tolist()) == (
        ["7", "8"],
        [10, 40],
        [60, 80],
        [5, 4],
    )


def test_a_tar_is_taken_before_a_folder_of_the_same_video(options: PrepareOptions) -> None:
    tars(root_of(options))
    write(root_of(options) / "rgb/train/P01/P01_01/frame_0000000001.jpg", RGB[1])
    prepare(options)
    assert Store.open(options.out).manifest.frames["rgb"] == FRAMES


def test_a_hole_that_no_segment_needs_is_kept_as_a_hole(options: PrepareOptions) -> None:
    folders(root_of(options))
    (root_of(options) / "rgb/P01/P01_01/frame_0000000003.jpg").unlink()
    prepare(options)
    store = Store.open(options.out)
    assert store.manifest.frames["rgb"] == FRAMES - 1
    assert store.read_frames("rgb", 0, [2, 4])[1].tobytes() == RGB[4]
    with pytest.raises(UserError, match="P01_01 has no rgb frame 3"):
        store.read_frames("rgb", 0, [2, 3, 4])


def drop(name: str, first: int, last: int) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        for n in range(first, last + 1):
            (root / name / f"frame_{n:010d}.jpg").unlink()

    return spoil


def drop_both(first: int, last: int) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        for axis in "uv":
            drop(f"flow/P01/P01_01/{axis}", first, last)(root)

    return spoil


def replaced(name: str, payload: bytes) -> Callable[[Path], None]:
    return lambda root: write(root / name, payload)


SPOILERS: list[tuple[Callable[[Path], object], str]] = [
    (
        drop_both(30, FLOW),
        "flow/P01/P01_01: flow of P01_01 is shorter than its RGB: 80 RGB frames need at least 37 flow files, found 29",
    ),
    (
        drop_both(20, 20),
        r"flow/P01/P01_01: flow of P01_01 .* segment 7 .* needs frames 5 to 29, 25 in all, 24 are there.* is 20",
    ),
    (drop("flow/P01/P01_01/v", 39, 39), "39 u files and 38 v files of P01_01; frame 39"),
    (drop("flow/P01/P01_01/v", 1, FLOW), "no flow frames of P01_01 .u 39, v 0"),
    (
        drop("rgb/P01/P01_01", 70, FRAMES),
        r"rgb/P01/P01_01: RGB of P01_01 .* segment 8 .*40 to 80.* the first missing is 70",
    ),
    (
        lambda root: shutil.rmtree(root / "flow"),
        "no flow frames of P01_01; looked for flow/P01/P01_01/u/frame_0000000001.jpg",
    ),
    (lambda root: shutil.rmtree(root / "rgb"), "no rgb frames of P01_01; looked for rgb/P01/P01_01"),
    (replaced("rgb/P01/P01_01/frame_0000000005.jpg", RGB[5][:-70]), "frame_0000000005.jpg: a JPEG that was cut off"),
    (replaced("rgb/P01/P01_01/frame_0000000005.jpg", b"html"), "frame_0000000005.jpg: not a JPEG file"),
    (
        replaced("rgb/P01/P01_01/frame_0000000005.jpg", jpeg(1, height=40)),
        "frame_0000000005.jpg: 40x48, the first RGB frame of P01_01 is 32x48",
    ),
    (
        replaced("flow/P01/P01_01/u/frame_0000000005.jpg", jpeg(1)),
        "frame_0000000005.jpg: 3 colour components, a frame of flow has 1",
    ),
    (replaced("rgb/again/P01_01/frame_0000000001.jpg", RGB[1]), "rgb frames of P01_01 are there twice"),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILERS)
def test_unusable_frames_are_named(options: PrepareOptions, spoil: Callable[[Path], object], message: str) -> None:
    folders(root_of(options))
    spoil(root_of(options))
    with pytest.raises(UserError, match=message) as caught:
        prepare(options)
    assert "\n" not in str(caught.value)
    assert not (options.out / "store.json").exists()
    assert not list(options.out.glob("*.tmp"))


def test_a_damaged_tar_is_named(options: PrepareOptions) -> None:
    tars(root_of(options))
    tar = root_of(options) / "flow/train/P01/P01_01.tar"
    tar.write_bytes(tar.read_bytes()[: 512 * 20 + 100])
    with pytest.raises(UserError, match=r"flow/train/P01/P01_01\.tar"):
        prepare(options)


def test_skip_bad_leaves_the_video_and_its_segments_out(options: PrepareOptions, tmp_path: Path) -> None:
    folders(root_of(options))
    (tmp_path / "D2_train.csv").write_text(SEGMENTS + "9,P01,P01_02,10,60,take,0\n")
    with pytest.raises(UserError, match=r"no rgb frames of P01_02.*--skip-bad"):
        prepare(options)
    prepare(replace(options, skip_bad=True))
    store = Store.open(options.out)
    assert store.segments.uid.tolist() == ["7", "8"]
    assert [one["item"] for one in store.manifest.skipped] == ["P01_02"]


@pytest.mark.parametrize(
    "change", [{"size": "64x64"}, {"rgb": "video"}, {"jpeg_quality": 80}, {"flow": "tvl1"}, {"classes": ("a",)}]
)
def test_options_that_say_nothing_here_are_refused(options: PrepareOptions, change: dict[str, object]) -> None:
    with pytest.raises(UserError, match="does not go with --epic-frames"):
        prepare(replace(options, **change))  # type: ignore[arg-type]


def test_the_real_frames_pack_byte_for_byte(shared_data: Path, options: PrepareOptions, tmp_path: Path) -> None:
    sample = shared_data / "epic_frames_sample"
    (tmp_path / "D2_train.csv").write_text(SEGMENTS.replace(",40,80,", ",40,100,"))
    prepare(replace(options, epic_frames=sample))
    store = Store.open(options.out)
    assert (store.manifest.height, store.manifest.width, store.manifest.frames) == (256, 456, {"rgb": 100, "flow": 200})
    numbers = range(1, 101)
    assert [v.tobytes() for v in store.read_frames("rgb", 0, numbers)] == [
        (sample / f"sample_rgb/P01_01_frame_{n:010d}.jpg").read_bytes() for n in numbers
    ]
    assert [v.tobytes() for v in store.read_frames("flow", 0, numbers)] == [
        (sample / f"sample_flow/P01_01_flow_{axis}_{n:010d}.jpg").read_bytes() for n in numbers for axis in "uv"
    ]
