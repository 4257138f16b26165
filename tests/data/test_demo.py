"""The toy kitchens: real video, the same again from the same seed, and verbs that no frame's colour gives away."""

import csv
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from mmsada_hpc.data.demo import DemoOptions, clip_file, clip_keys, render_demo
from mmsada_hpc.data.demo_gestures import draw_scene, shapes_at
from mmsada_hpc.data.demo_kitchens import KITCHENS, VERBS, Difficulty
from mmsada_hpc.data.demo_render import ClipKey, clip_generator, render_clip
from mmsada_hpc.data.segments import read_labels
from mmsada_hpc.errors import UserError


def options(out: Path, **changes: object) -> DemoOptions:
    values: dict[str, object] = {"train": 1, "test": 1, "height": 48, "width": 48, "frames": 16, "workers": 1}
    return DemoOptions(out=out, **{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> DemoOptions:
    """A rendered folder of one kitchen."""
    wanted = options(tmp_path_factory.mktemp("toy") / "demo", kitchens=("K3",), train=2, height=48, width=64, fps=25)
    render_demo(wanted)
    return wanted


def clip(kitchen: str, verb: str, index: int, *, frames: int = 48, fps: float = 30) -> NDArray[np.uint8]:
    return render_clip(0, ClipKey(kitchen, "train", verb, index), height=48, width=48, frames=frames, fps=fps)


def test_the_same_seed_gives_the_same_clip_and_any_other_key_another() -> None:
    first = clip("K1", "mix", 0, frames=4)
    np.testing.assert_array_equal(first, clip("K1", "mix", 0, frames=4))
    others = [ClipKey("K2", "train", "mix", 0), ClipKey("K1", "test", "mix", 0), ClipKey("K1", "train", "mix", 1)]
    states = {str(clip_generator(0, key).bit_generator.state["state"]["key"]) for key in others}
    states |= {
        str(clip_generator(seed, ClipKey("K1", "train", "mix", 0)).bit_generator.state["state"]["key"])
        for seed in (0, 1)
    }
    assert len(states) == 5


def test_the_table_lists_every_clip_once_and_prepare_reads_it(rendered: DemoOptions) -> None:
    labels = rendered.out / "labels.csv"
    with labels.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len({row["file"] for row in rows}) == 8 * (2 + 1)
    for verb in VERBS:
        assert [row["split"] for row in rows if row["class"] == verb] == ["train", "train", "test"]
    videos, classes = read_labels(labels, classes=VERBS)
    assert classes == VERBS
    assert all((rendered.out / video.file).is_file() and video.domain == "K3" for video in videos)


def test_every_clip_is_vp9_video_of_the_size_and_length_asked_for(rendered: DemoOptions) -> None:
    for key in clip_keys(rendered):
        with av.open(str(rendered.out / clip_file(key))) as container:
            stream = container.streams.video[0]
            shapes = [frame.to_ndarray(format="rgb24").shape for frame in container.decode(stream)]
            assert stream.codec_context.codec.canonical_name == "vp9"
            assert stream.average_rate == Fraction(25)
            assert shapes == [(48, 64, 3)] * 16


def test_the_video_is_the_rendered_clip_give_or_take_compression(rendered: DemoOptions) -> None:
    key = ClipKey("K3", "train", "wash", 0)
    drawn = render_clip(0, key, height=48, width=64, frames=16, fps=25)
    with av.open(str(rendered.out / clip_file(key))) as container:
        seen = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert np.abs(seen.astype(float) - drawn).mean() < 10


def test_rendering_on_several_processes_writes_the_same_bytes(tmp_path: Path) -> None:
    one, two = options(tmp_path / "one", kitchens=("K1",)), options(tmp_path / "two", kitchens=("K1",), workers=2)
    render_demo(one)
    render_demo(two)
    for key in clip_keys(one):
        assert (one.out / clip_file(key)).read_bytes() == (two.out / clip_file(key)).read_bytes()


def test_a_folder_with_these_clips_is_kept_and_one_with_others_is_made_anew(tmp_path: Path) -> None:
    wanted = options(tmp_path / "demo", kitchens=("K1",))
    first = render_demo(wanted).stat().st_mtime_ns
    assert render_demo(wanted).stat().st_mtime_ns == first
    render_demo(replace(wanted, kitchens=("K2",)))
    assert not (tmp_path / "demo" / "K1").exists()
    assert (tmp_path / "demo" / "K2").is_dir()


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"was not made by demo-data.*--out"):
        render_demo(options(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"kitchens": ("K9",)}, "--domains K9"),
        ({"height": 47}, "--size 47x48"),
        ({"train": 0}, "--train"),
        ({"frames": 3}, "--frames"),
    ],
)
def test_an_impossible_option_is_named_before_anything_is_written(
    tmp_path: Path, changes: dict[str, object], names: str
) -> None:
    with pytest.raises(UserError, match=names):
        render_demo(options(tmp_path / "demo", **changes))
    assert not (tmp_path / "demo").exists()


def test_the_folder_says_that_it_is_synthetic(rendered: DemoOptions) -> None:
    assert "SYNTHETIC" in (rendered.out / "README.txt").read_text()


def test_colours_are_drawn_alike_for_every_verb() -> None:
    style, dials = KITCHENS["K1"], Difficulty()
    means = []
    for verb in VERBS:
        scenes = [
            draw_scene(clip_generator(7, ClipKey("K1", "train", verb, i)), verb, style, dials, frames=48)
            for i in range(60)
        ]
        means.append(np.mean([[*scene.colours, scene.sleeve, scene.skin] for scene in scenes], axis=(0, 1)))
    assert np.ptp(means, axis=0).max() < 16  # of 255; the standard error of a mean over 60 clips is about 3


def test_the_mean_colour_of_a_frame_does_not_give_the_verb() -> None:
    colours = np.array(
        [[clip("K1", verb, i, frames=2, fps=2.5)[1].mean(axis=(0, 1)) for i in range(16)] for verb in VERBS]
    )
    centres = colours[:, :8].mean(axis=1)
    nearest = np.linalg.norm(colours[:, 8:, None] - centres, axis=-1).argmin(axis=-1)
    accuracy = (nearest == np.arange(len(VERBS))[:, None]).mean()
    assert accuracy < 0.3  # chance is 0.125, 64 clips


@pytest.mark.parametrize(("forward", "backward"), [("take", "put"), ("open", "close")])
def test_opposite_verbs_are_the_same_motion_backwards(forward: str, backward: str) -> None:
    scene = draw_scene(
        clip_generator(0, ClipKey("K1", "train", forward, 0)), forward, KITCHENS["K1"], Difficulty(), frames=48
    )
    for frame in (0, 11, 47):
        there, back = shapes_at(scene, frame), shapes_at(replace(scene, verb=backward), 47 - frame)
        assert len(there) == len(back)
        assert all(np.array_equal(a.outline, b.outline) and a.rgb == b.rgb for a, b in zip(there, back, strict=True))


def test_gestures_keep_their_speed_at_another_frame_rate() -> None:
    at_30, at_60 = clip("K1", "cut", 0, frames=24), clip("K1", "cut", 0, frames=48, fps=60)
    grain = 4 * KITCHENS["K1"].noise
    assert np.abs(at_30.astype(float) - at_60[::2]).mean() < grain
