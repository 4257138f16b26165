"""`bench loader` compares like with like: every way gives the same clips, and is measured from rest to rest."""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmsada_hpc.bench.loader import Task, per_clip, rows_of
from mmsada_hpc.bench.loader_child import Measured, Measurer, Request, Spec, bench_setup
from mmsada_hpc.bench.loader_plain import PlainClips
from mmsada_hpc.bench.loader_process import loader_processes
from mmsada_hpc.bench.loader_step import bench_step
from mmsada_hpc.bench.rows import Report
from mmsada_hpc.cli import main
from mmsada_hpc.data.graph import PipelineSettings
from mmsada_hpc.data.loader import Loader
from mmsada_hpc.data.manifest import MANIFEST, STREAMS
from mmsada_hpc.data.pipeline import StreamPipeline
from mmsada_hpc.data.plan import ClipPlan, Views
from mmsada_hpc.data.prepare import PrepareOptions, prepare
from mmsada_hpc.data.schedule import TrainSchedule
from mmsada_hpc.data.store import Store
from mmsada_hpc.data.windows import WindowRule
from mmsada_hpc.errors import UserError
from mmsada_hpc.train.setup import Setup
from mmsada_kernels.clips import is_compiled, make_clips

GREY = 1 / 128
SMALL = (
    "train.global_batch=8",
    "train.micro_batch=8",
    "model.batch_norm.group_size=4",
    "data.num_frames=8",
    "data.threads=1",
)
needs_kernel = pytest.mark.skipif(not is_compiled(), reason="the compiled operators are not built here")


def setup_of(store: Store, *, crop: int) -> Setup:
    return bench_setup(str(store.path), (*SMALL, f"data.crop={crop}"))


def ours(setup: Setup, finish: Any) -> dict[str, Tensor]:
    schedule = TrainSchedule(setup.planner, setup.layout, 0, 1, 0)
    loader = Loader(setup.store, schedule, dataclasses.replace(setup.decoding, finish=finish))
    return dict(loader.next().clips_NTHWC)


def plain(setup: Setup, decoder: Any) -> dict[str, Tensor]:
    clips = PlainClips(setup.store, TrainSchedule(setup.planner, setup.layout, 0, 1, 0), setup.decoding, decoder)
    batch = [clips[i] for i in range(8)]
    return {stream: torch.stack([clip[stream] for clip in batch]) for stream in ("rgb", "flow")}


@needs_kernel
@pytest.mark.parametrize("crop", [40, 48, 64, 100])
def test_the_kernel_gives_the_pixels_of_dalis_graph(tiny_store: Store, crop: int) -> None:
    setup = setup_of(tiny_store, crop=crop)
    kernel, graph = ours(setup, "kernel"), ours(setup, "graph")
    for stream in ("rgb", "flow"):
        assert kernel[stream].shape == graph[stream].shape == (8, 8, crop, crop, 3 if stream == "rgb" else 2)
        assert (kernel[stream] - graph[stream]).abs().max() < 0.01 * GREY


@needs_kernel
def test_the_kernel_gives_the_pixels_of_dalis_graph_from_video(tiny_video_store: Store) -> None:
    setup = setup_of(tiny_video_store, crop=48)
    assert (ours(setup, "kernel")["rgb"] - ours(setup, "graph")["rgb"]).abs().max() < 0.01 * GREY


@needs_kernel
@pytest.mark.parametrize("box", [(0, 0, 64, 64), (3, 5, 9, 70), (10, 0, 54, 7)], ids=["larger", "wide", "narrow"])
def test_boxes_of_any_shape_are_resized_as_dali_does(tiny_store: Store, box: tuple[int, int, int, int]) -> None:
    rows = np.arange(2)
    views = Views(rows, np.full(2, 16), np.tile(np.array(box), (2, 1)), np.array([True, False]))
    plan = ClipPlan({"rgb": views, "flow": views}, rows * 0, rows * 0, rows == rows, {})
    settings = PipelineSettings(WindowRule(4, 2, 2), crop=33, device="cpu", device_id=None, threads=1, prefetch=1)
    for stream in STREAMS:
        kernel, graph = (
            StreamPipeline(
                tiny_store,
                stream,
                lambda i: plan,
                dataclasses.replace(settings, finish=finish),
                batch=2,
            ).next()
            for finish in ("kernel", "graph")
        )
        assert (kernel - graph).abs().max() < 0.01 * GREY


@needs_kernel
def test_clips_that_are_held_are_not_written_again_and_freed_ones_are() -> None:
    size, flip = torch.tensor([[8, 8]]), torch.zeros(1, dtype=torch.bool)

    def make(grey: int) -> Tensor:
        crops = torch.full((2 * 64 * 3,), grey, dtype=torch.uint8)
        return make_clips(crops, size, flip, frames=2, planes=1, channels=3, side=77)

    held = [make(grey) for grey in range(12)]
    assert [float(clip.mean() * 128 + 128) for clip in held] == list(range(12))
    place = held[3].data_ptr()
    del held[3]
    assert make(99).data_ptr() == place
    assert [round(float(clip.mean() * 128 + 128)) for clip in held[:3]] == [0, 1, 2]


@needs_kernel
def test_bytes_that_do_not_fit_their_sizes_are_refused() -> None:
    with pytest.raises(RuntimeError, match="bytes: 5 of them, the sizes say 192"):
        make_clips(
            torch.zeros(5, dtype=torch.uint8),
            torch.tensor([[8, 8]]),
            torch.zeros(1, dtype=torch.bool),
            frames=1,
            planes=1,
            channels=3,
            side=8,
        )


@pytest.mark.parametrize("form", ["jpeg", "video"])
def test_opencv_gives_the_clips_of_the_loader(tiny_store: Store, tiny_video_store: Store, form: str) -> None:
    """Same windows, crops and flips; decoders, and OpenCV's resize to whole grey levels, differ by a few."""
    setup = setup_of(tiny_store if form == "jpeg" else tiny_video_store, crop=48)
    loader, opencv = ours(setup, "auto"), plain(setup, "OpenCV")
    assert (loader["rgb"] - opencv["rgb"]).abs().mean() < 2 * GREY
    assert (loader["flow"] - opencv["flow"]).abs().mean() < 0.5 * GREY
    assert (loader["flow"] - opencv["flow"]).abs().max() < 3 * GREY


@pytest.mark.parametrize("form", ["jpeg", "video"])
def test_pil_gives_the_clips_of_the_loader(tiny_store: Store, tiny_video_store: Store, form: str) -> None:
    """As above; PIL also smooths what it makes smaller, so only clips that keep their size are close in every pixel."""
    setup = setup_of(tiny_store if form == "jpeg" else tiny_video_store, crop=64)
    loader, pil = ours(setup, "auto"), plain(setup, "PIL")
    assert (loader["rgb"] - pil["rgb"]).abs().mean() < 2 * GREY
    assert (loader["flow"] - pil["flow"]).abs().mean() < 0.5 * GREY
    other = pil["rgb"].flip(3)
    assert (loader["rgb"] - other).abs().mean() > 4 * GREY, "a mirrored clip would be noticed"
    late = torch.roll(pil["rgb"], 1, dims=1)
    assert (loader["rgb"] - late).abs().mean() > (loader["rgb"] - pil["rgb"]).abs().mean() * 1.5


def measured(seconds: float) -> Measured:
    return Measured(seconds, 4, 0.1 * seconds, 0.0, 100.0, (1.0, 1.0, 1.0))


def test_rates_of_ranks_add_up_and_cpu_time_is_per_clip() -> None:
    found = {"DALI": [[measured(1.0), measured(1.0)]] * 3, "PIL": [[measured(4.0), measured(4.0)]] * 3}
    pil, pil_cpu, dali, dali_cpu = rows_of("shape", found, batch=8, encoded=(0.5, 48))
    assert (pil.value, dali.value, dali.ratio, dali.baseline) == (16.0, 64.0, 4.0, pil.name)
    assert (pil_cpu.value, dali_cpu.value, dali_cpu.ratio) == (50.0, 12.5, 4.0)
    assert (dali.details["mb_per_s"], dali.details["decodes_per_s"], dali.details["ranks"]) == (32.0, 3072.0, 2)


def test_a_clip_is_a_window_of_frames_and_of_flow_pairs(tiny_store: Store, tiny_video_store: Store) -> None:
    for store in (tiny_store, tiny_video_store):
        megabytes, images = per_clip(setup_of(store, crop=48))
        assert images == 24
        assert 0.001 < megabytes < 1


def test_the_command_measures_every_way_and_keeps_rows(
    tiny_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    command = ["bench", "loader", "--store", str(tiny_store.path), "--quick", "--repeats", "1", "--way", "DALI"]
    own = ["data.crop=32", "data.threads=1"]
    assert main([*command, "--way", "PIL", "--cold", "--json", str(path), *own]) == 0
    rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["unit"] for row in rows] == ["clips/s", "ms/clip"] * 4
    assert all(row["value"] > 0 for row in rows)
    names = [row["name"] for row in rows if row["name"].startswith("DALI")]
    assert names == [f"DALI, jpeg 64x80 to 8x32, N=8, 1 core{cold}" for cold in ("", ", cold")]
    assert rows[2]["ratio"] == pytest.approx(rows[2]["value"] / rows[0]["value"])
    assert names[0] in capsys.readouterr().out


def test_ranks_that_share_the_cores_are_a_measurement_of_their_own(tiny_store: Store, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    command = ["bench", "loader", "--store", str(tiny_store.path), "--quick", "--repeats", "1", "--ranks", "2"]
    own = ["data.crop=32", "data.threads=1"]
    assert main([*command, "--way", "DALI", "--way", "PIL", "--json", str(path), *own]) == 0
    rows = {row["name"]: row for row in map(json.loads, path.read_text().splitlines())}
    alone, shared = (f"jpeg 64x80 to 8x32, N=8, 1 core{ranks}" for ranks in ("", ", 2 ranks"))
    for shape, ranks in ((alone, 1), (shared, 2)):
        dali = rows[f"DALI, {shape}"]
        assert (dali["baseline"], dali["details"]["ranks"]) == (f"PIL DataLoader, {shape}", ranks)
        assert rows[f"CPU, DALI, {shape}"]["baseline"] == f"CPU, PIL DataLoader, {shape}"


def test_ranks_without_a_store_render_the_toy_kitchens_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    mpi = [str(Path(sys.executable).with_name("mpiexec")), "-n", "2", sys.executable, "-m", "mmsada_hpc.cli"]
    command = [*mpi, "bench", "loader", "--quick", "--repeats", "1", "--way", "DALI", "--json", str(path)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    own = ["--stores", str(tmp_path / "stores"), "data.crop=32", "data.threads=1"]
    done = subprocess.run([*command, *own], capture_output=True, text=True, timeout=240, env=env)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["rank"], row["unit"]) for row in rows] == [
        (r, unit) for r in (0, 1) for unit in ("clips/s", "ms/clip")
    ]
    assert len(list((tmp_path / "stores").glob(f"bench_*/{MANIFEST}"))) == 1


def test_a_store_of_one_domain_has_no_source_and_target(
    tiny_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, store = tmp_path / "labels.csv", tmp_path / "store"
    lines = (tiny_videos / "labels.csv").read_text().splitlines(keepends=True)
    labels.write_text("".join(line for line in lines if ",west," not in line))
    prepare(PrepareOptions(store, videos=tiny_videos, labels=labels, size="64x80", workers=1))
    capsys.readouterr()
    assert main(["bench", "loader", "--quick", "--store", str(store)]) == 2
    assert f"error: {store}: has only the domain east" in capsys.readouterr().err


def test_memory_is_seen_at_the_start_the_middle_and_the_end(tiny_store: Store) -> None:
    spec = Spec("DALI", str(tiny_store.path), (*SMALL, "data.crop=32"), 1)
    found = Measurer(spec).measure(Request(20, memory=True))
    assert (found.batches, len(found.rss_mb)) == (20, 3)
    assert found.rss_mb[2] - found.rss_mb[1] < 20


def test_a_fed_step_is_compared_with_one_on_clips_in_memory(tiny_store: Store) -> None:
    setup = bench_setup(str(tiny_store.path), (*SMALL, "data.crop=32", "model.width=0.125"))
    report = Report()
    bench_step(setup, "shape", argparse.Namespace(quick=True, repeats=1), report)
    memory, fed, over, decoding = report.rows
    assert fed.ratio == pytest.approx(memory.value / fed.value)
    assert over.value == pytest.approx(100 * (fed.value / memory.value - 1))
    assert decoding.unit == "ms"


def test_ranks_share_the_cores_and_see_their_own_clips(tiny_store: Store) -> None:
    task = Task(str(tiny_store.path), SMALL, 8, 4)
    specs = [task.spec("DALI", rank=rank, ranks=2) for rank in range(2)]
    assert [(spec.threads, spec.rank) for spec in specs] == [(2, 0), (2, 1)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch", "7"], "--batch 7"),
        (["--ranks", "0"], "--ranks"),
        (["data.crop=32", "data.num_frames=64"], "window"),
    ],
)
def test_a_wrong_option_is_told(
    tiny_store: Store, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "loader", "--store", str(tiny_store.path), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_loader_that_fails_says_why(tiny_store: Store, tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"bench loader: PIL: .*nowhere"),
        loader_processes([Spec("PIL", str(tmp_path / "nowhere"), SMALL, 1)]),
    ):
        pass
