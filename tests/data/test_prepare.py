"""`prepare` makes the same whole store on any machine, or says in one line what is wrong and leaves no store."""

import argparse
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from mmsada_hpc.data import prepare as command
from mmsada_hpc.data.prepare import PrepareOptions, prepare
from mmsada_hpc.data.store import Store
from mmsada_hpc.errors import UserError
from tests.conftest import write_video

FEW = [
    "east/across_00.webm,east,train,across",
    "east/down_01.webm,east,test,down",
    "west/still_02.avi,west,train,still",
]


@pytest.fixture
def few(tiny_videos: Path, tmp_path: Path) -> PrepareOptions:
    """Options for three of the tiny videos, copied so that a test may spoil them."""
    folder = tmp_path / "videos"
    for line in FEW:
        file = line.split(",")[0]
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tiny_videos / file, folder / file)
    relabel(folder, FEW)
    return PrepareOptions(tmp_path / "store", videos=folder, labels=folder / "labels.csv", size="64x80", workers=1)


def relabel(folder: Path, lines: list[str]) -> None:
    (folder / "labels.csv").write_text("\n".join(["file,domain,split,class", *lines]) + "\n")


def contents(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.iterdir() if path.name != "store.json"}


def assert_refused(options: PrepareOptions, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        prepare(options)
    assert "\n" not in str(caught.value)
    assert not (options.out / "store.json").exists()
    assert not list(options.out.glob("*.tmp"))


def test_counts_are_those_of_the_labels(tiny_store: Store) -> None:
    store, manifest = tiny_store, tiny_store.manifest
    assert manifest.classes == ("across", "down", "still")
    assert manifest.domains == ("east", "west")
    assert (len(store.segments), manifest.fps, manifest.height, manifest.width) == (32, 30.0, 64, 80)
    assert manifest.frames == {"rgb": 32 * 40, "flow": 32 * 17 * 2}
    assert [len(store.select(d, s)) for d in ("east", "west") for s in ("train", "test")] == [12, 4, 12, 4]


def test_every_frame_of_a_segment_has_flow(tiny_store: Store) -> None:
    segments, flow = tiny_store.segments, tiny_store.manifest.flow
    assert (segments.start == 1).all()
    for row in range(len(segments)):
        _, last = tiny_store.extent("flow", int(segments.video[row]))
        assert segments.stop[row] // flow.stride == last
        assert (segments.stop[row] + 1) // flow.stride > last


def test_nothing_but_the_store_is_left(tiny_store: Store) -> None:
    names = {path.name for path in tiny_store.path.iterdir()}
    listed = {entry.file for entry in (*tiny_store.manifest.shards, *tiny_store.manifest.tables)}
    assert names == listed | {"store.json"}


def test_the_store_does_not_depend_on_the_number_of_workers(
    tiny_store: Store, tiny_videos: Path, tmp_path: Path
) -> None:
    options = PrepareOptions(tmp_path / "store", videos=tiny_videos, labels=tiny_videos / "labels.csv", size="64x80")
    prepare(replace(options, workers=2))
    assert contents(tmp_path / "store") == contents(tiny_store.path)


def test_a_complete_store_is_not_made_again(few: PrepareOptions) -> None:
    assert not prepare(few).already
    before = {path: path.stat().st_mtime_ns for path in few.out.iterdir()}
    assert prepare(few).already
    assert {path: path.stat().st_mtime_ns for path in few.out.iterdir()} == before


def test_other_options_are_named_and_force_makes_it_anew(few: PrepareOptions) -> None:
    prepare(few)
    other = replace(few, jpeg_quality=80)
    with pytest.raises(UserError, match=r"jpeg_quality = 95, now it is 80.*--force"):
        prepare(other)
    assert Store.open(few.out).manifest.options["jpeg_quality"] == 95
    prepare(replace(other, force=True))
    assert Store.open(few.out).manifest.options["jpeg_quality"] == 80


def test_changed_labels_of_a_complete_store_are_noticed(few: PrepareOptions) -> None:
    prepare(few)
    assert few.videos is not None
    relabel(few.videos, FEW[:2])
    with pytest.raises(UserError, match="other videos or labels"):
        prepare(replace(few, classes=("across", "down", "still")))


def test_a_complete_store_with_a_lost_shard_is_not_called_complete(few: PrepareOptions) -> None:
    prepare(few)
    (few.out / "rgb-00000.tar").unlink()
    with pytest.raises(UserError, match=r"rgb-00000.tar.*--force"):
        prepare(few)
    prepare(replace(few, force=True))
    assert Store.open(few.out).verify() == []


def test_a_folder_with_other_things_in_it_is_left_alone(few: PrepareOptions) -> None:
    few.out.mkdir()
    (few.out / "thesis.tex").write_text("years of work")
    for options in (few, replace(few, force=True)):
        assert_refused(options, "not empty and not a store")
    assert (few.out / "thesis.tex").read_text() == "years of work"


def empty_video(path: Path) -> None:
    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 96, 72, "yuv420p"
        container.start_encoding()


def sound_only(path: Path) -> None:
    with av.open(str(path), "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def unknown_codec(path: Path) -> None:
    payload = path.with_name("down_01.avi")
    write_video(payload, motion=(0, 1), seed=1, frames=12)
    data = payload.read_bytes()
    payload.unlink()
    path.write_bytes(data.replace(b"FMP4", b"ZZZZ"))


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


SPOILERS: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: path.unlink(), "no such video file"),
    (lambda path: path.write_bytes(b"not a video at all" * 99), "not a readable video"),
    (lambda path: path.write_bytes(b""), "not a readable video"),
    (empty_video, "without frames"),
    (sound_only, "no video stream"),
    (unknown_codec, "codec"),
    (cut_off, "without frames|not a readable video|no video stream"),
    (lambda path: write_video(path, motion=(1, 0), seed=3, frames=7), "only 7 frames; flow .* needs 8"),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILERS)
def test_an_unusable_video_is_named(few: PrepareOptions, spoil: Callable[[Path], object], message: str) -> None:
    assert few.videos is not None
    spoil(few.videos / "east/down_01.webm")
    assert_refused(few, rf"down_01\.webm: .*({message})")


@pytest.mark.parametrize(("spoil", "message"), SPOILERS)
def test_skip_bad_leaves_it_out_and_lists_it(
    few: PrepareOptions, spoil: Callable[[Path], object], message: str
) -> None:
    assert few.videos is not None
    spoil(few.videos / "east/down_01.webm")
    prepare(replace(few, skip_bad=True))
    store = Store.open(few.out)
    assert store.videos == ("east/across_00", "west/still_02")
    assert len(store.segments) == 2
    assert [one["item"] for one in store.manifest.skipped] == ["east/down_01"]
    assert "down_01.webm" in store.manifest.skipped[0]["why"]
    assert store.verify() == []


def test_what_was_skipped_is_listed_again_when_nothing_is_left_to_do(
    few: PrepareOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    assert few.videos is not None
    write_video(few.videos / "east/down_01.webm", motion=(1, 0), seed=3, frames=7)
    for _ in range(2):
        run_command("--videos", few.videos, "--labels", few.labels, "--out", few.out, "--workers", 1, "--skip-bad")
        assert "skipped 1 videos:\n    east/down_01: " in capsys.readouterr().out


def test_an_error_in_a_worker_process_comes_back_as_it_is(few: PrepareOptions) -> None:
    assert few.videos is not None
    write_video(few.videos / "east/down_01.webm", motion=(1, 0), seed=3, frames=7)
    assert_refused(replace(few, workers=2), r"down_01\.webm: only 7 frames")


def test_frame_rates_are_not_mixed(few: PrepareOptions) -> None:
    assert few.videos is not None
    write_video(few.videos / "east/down_01.webm", motion=(1, 0), seed=3, fps=25)
    assert_refused(few, "east/down_01 has 25 frames/s, east/across_00 has 30")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": "64"}, "--size 64: write HEIGHTxWIDTH"),
        ({"size": "16x16"}, "at least 32x32"),
        ({"size": "63x80", "rgb": "video"}, "even height and width"),
        ({"flow_stride": 0}, "must be positive"),
        ({"jpeg_quality": 101}, "--jpeg-quality 1 to 100"),
        ({"labels": None}, "say what to prepare"),
        ({"epic_frames": Path(".")}, "say what to prepare"),
        ({"videos": Path("nowhere")}, "nowhere: no such folder"),
        ({"classes": ("across", "downs", "still")}, "unknown class 'down' .did you mean 'downs'"),
    ],
)
def test_a_bad_option_is_named(few: PrepareOptions, change: dict[str, object], message: str) -> None:
    assert_refused(replace(few, **change), message)  # type: ignore[arg-type]
    assert not few.out.exists()


def run_command(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(argument) for argument in arguments]))


def test_the_command_prints_a_summary(few: PrepareOptions, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run_command("--videos", few.videos, "--labels", few.labels, "--out", few.out, "--size", "64x80", "--workers", 1)
        == 0
    )
    printed = capsys.readouterr().out
    assert "3 videos, 3 segments, 120 RGB frames, 51 flow pairs" in printed
    assert "MB in 2 shards" in printed


def test_a_dry_run_lists_and_writes_nothing(few: PrepareOptions, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run_command("--videos", few.videos, "--labels", few.labels, "--out", few.out, "--workers", 1, "--dry-run") == 0
    )
    printed = capsys.readouterr().out
    assert "east/across_00: about 40 frames" in printed
    assert "nothing was written" in printed
    assert not few.out.exists()
