"""Real DALI on real JPEG and video: values, flips, crops, layout without a copy, errors that name the file (laws 4, 8;
spec 4.5).
"""

import dataclasses
import shutil
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from nvidia.dali import Pipeline

from mmsada_hpc.data.graph import PipelineSettings, build_pipeline
from mmsada_hpc.data.loader import Loader
from mmsada_hpc.data.pipeline import StreamPipeline, StreamSource
from mmsada_hpc.data.plan import ClipPlan, Views
from mmsada_hpc.data.prepare import PrepareOptions, prepare
from mmsada_hpc.data.schedule import TestSchedule, plan_test_windows
from mmsada_hpc.data.store import Store
from mmsada_hpc.data.windows import WindowRule, centre_box
from mmsada_hpc.errors import UserError
from mmsada_hpc.model.batch_norm import GroupContext
from mmsada_hpc.model.convolution import SameConv3d, pad_to_same
from mmsada_hpc.model.i3d import I3d
from mmsada_hpc.model.streams import channels_first

RULE = WindowRule(num_frames=8, rgb_step=2, flow_stride=2)
CPU = PipelineSettings(RULE, crop=48, device="cpu", device_id=None, threads=1, prefetch=2)


def windows(store: Store, *, flip: bool, box: tuple[int, int, int, int], clips: int = 2) -> ClipPlan:
    rows = np.arange(clips)
    views = Views(rows, np.full(clips, 16), np.tile(np.array(box), (clips, 1)), np.full(clips, flip))
    both, every = {"rgb": views, "flow": views}, np.ones(clips, bool)
    return ClipPlan(both, np.zeros(clips, np.int64), store.segments.label[rows], every, {})


def decode(store: Store, plan: ClipPlan, settings: PipelineSettings = CPU) -> dict[str, torch.Tensor]:
    return {s: StreamPipeline(store, s, lambda i: plan, settings, batch=len(plan)).next() for s in ("rgb", "flow")}


def expected(store: Store, stream: Any, clip: int, box: tuple[int, int, int, int], flip: bool, side: int) -> np.ndarray:
    """The same window by OpenCV, in the words of spec 4.5."""
    y, x, h, w = box
    numbers = RULE.rgb_frames(16) if stream == "rgb" else RULE.flow_frames(16)
    planes = [
        np.asarray(cv2.imdecode(j, cv2.IMREAD_UNCHANGED), np.float32)
        for j in store.read_frames(stream, int(store.segments.video[clip]), numbers)
    ]
    frames = (
        [p[..., ::-1] for p in planes]
        if stream == "rgb"
        else [np.stack(pair, axis=-1) for pair in zip(planes[::2], planes[1::2], strict=True)]
    )
    cut = np.stack(
        [
            cv2.resize(np.ascontiguousarray(f[y : y + h, x : x + w]), (side, side), interpolation=cv2.INTER_LINEAR)
            for f in frames
        ]
    )
    if flip:
        cut = cut[:, :, ::-1].copy()
        if stream == "flow":
            cut[..., 0] = 255 - cut[..., 0]
    return (cut / 256 - 0.5) * 2


@pytest.mark.parametrize("flip", [False, True], ids=["plain", "flipped"])
@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_decoded_clips_equal_opencv_to_a_grey_level(tiny_store: Store, stream: str, flip: bool) -> None:
    box = (4, 10, 48, 48)
    clips = decode(tiny_store, windows(tiny_store, flip=flip, box=box))[stream]
    want = expected(tiny_store, stream, 1, box, flip, 48)
    assert np.abs(clips[1].numpy() - want).max() <= 3.1 / 128, "JPEG decoders differ by a few grey levels at most"
    assert np.abs(clips[1].numpy() - want).mean() < 0.3 / 128


def test_a_crop_of_another_size_is_resized(tiny_store: Store) -> None:
    box = (0, 8, 64, 56)
    clips = decode(tiny_store, windows(tiny_store, flip=False, box=box))["rgb"]
    assert clips.shape == (2, 8, 48, 48, 3)
    assert np.abs(clips[0].numpy() - expected(tiny_store, "rgb", 0, box, False, 48)).mean() < 2 / 128


def test_both_rgb_forms_decode_the_same_frames(tiny_store: Store, tiny_video_store: Store) -> None:
    plan = windows(tiny_store, flip=True, box=(4, 10, 48, 48))
    jpeg, video = (decode(s, plan)["rgb"] for s in (tiny_store, tiny_video_store))
    assert jpeg.shape == video.shape
    assert (jpeg - video).abs().mean() < 6 / 128, "VP9 and JPEG lose different details"
    shifted = torch.roll(video, 1, dims=1)
    assert (jpeg - video).abs().mean() < (jpeg - shifted).abs().mean(), "the frame numbers agree"


def test_values_lie_in_minus_one_to_one_and_no_motion_is_exactly_zero(shared_data: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("uid,participant_id,video_id,start_frame,stop_frame,verb,verb_class\n1,P01,P01_01,1,100,take,0\n")
    prepare(
        PrepareOptions(
            tmp_path / "store", epic_frames=shared_data / "epic_frames_sample", segments=(f"D2/train={table}",)
        )
    )
    store = Store.open(tmp_path / "store")
    rule = WindowRule(16, 2, 2)
    settings = dataclasses.replace(CPU, rule=rule, crop=224)
    row = np.array([0])
    plan = plan_test_windows(
        rows=row,
        start=store.segments.start[row],
        stop=store.segments.stop[row],
        label=store.segments.label[row],
        domain=0,
        rule=rule,
        windows=5,
        frame_size=(256, 456),
    )
    clips = decode(store, plan, settings)
    assert clips["rgb"].shape == (5, 16, 224, 224, 3)
    assert clips["flow"].shape == (5, 16, 224, 224, 2)
    for value in clips.values():
        assert value.min() >= -1
        assert value.max() <= 127 / 128
    jpegs = store.read_frames("flow", 0, rule.flow_frames(int(plan.views["flow"].centre_N[0])))
    planes = np.stack([np.asarray(cv2.imdecode(j, cv2.IMREAD_GRAYSCALE))[16:240, 116:340] for j in jpegs])
    bytes_THWC = np.stack([planes[::2], planes[1::2]], axis=-1)
    still = bytes_THWC == 128
    assert still.any()
    assert (clips["flow"][0].numpy()[still] == 0).all(), "flow byte 128 is exactly 0"


def test_memory_from_dali_to_the_first_convolution_is_ndhwc_without_a_copy(
    tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = decode(tiny_store, windows(tiny_store, flip=False, box=(4, 10, 48, 48)))["rgb"]
    seen: list[torch.Tensor] = []

    def watched(x_NCTHW: torch.Tensor, *geometry: Any, **dtype: Any) -> tuple[torch.Tensor, list[int]]:
        seen.append(x_NCTHW)
        return pad_to_same(x_NCTHW, *geometry, **dtype)

    monkeypatch.setattr("mmsada_hpc.model.fused.pad_to_same", watched)
    network = I3d(3, GroupContext(group_size=2, test="mixture"), width=0.125)
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    first = next(m for m in network.modules() if isinstance(m, SameConv3d))
    first.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for network.fuses in (True, False):
        seen.clear()
        network(channels_first(clips))
        assert seen[0].data_ptr() == clips.data_ptr(), "the convolution reads the memory DALI wrote"
        assert seen[0].stride() == (8 * 48 * 48 * 3, 1, 48 * 48 * 3, 48 * 3, 3)


def test_a_batch_stays_valid_while_later_ones_are_decoded(tiny_store: Store) -> None:
    plan = plan_test_windows(
        rows=np.arange(8),
        start=np.ones(8, int),
        stop=tiny_store.segments.stop[:8],
        label=np.zeros(8, int),
        domain=0,
        rule=RULE,
        windows=5,
        frame_size=(64, 80),
    )
    loader = Loader(tiny_store, TestSchedule(plan, 4), CPU)
    batches = [loader.next().clips_NTHWC["rgb"] for _ in range(3)]
    copies = [b.clone() for b in batches]
    for _ in range(7):
        loader.next()
    assert all(torch.equal(a, b) for a, b in zip(batches, copies, strict=True))


def test_reader_processes_give_the_same_clips(tiny_store: Store) -> None:
    plan = plan_test_windows(
        rows=np.arange(2),
        start=np.ones(2, int),
        stop=tiny_store.segments.stop[:2],
        label=np.zeros(2, int),
        domain=0,
        rule=RULE,
        windows=2,
        frame_size=(64, 80),
    )
    inside, outside = (
        Loader(tiny_store, TestSchedule(plan, 4), dataclasses.replace(CPU, readers=r)).next() for r in (0, 1)
    )
    assert all(torch.equal(inside.clips_NTHWC[s], outside.clips_NTHWC[s]) for s in ("rgb", "flow"))


def test_without_motion_a_window_is_its_centre_frame_and_zero_flow(tiny_store: Store) -> None:
    clips = decode(
        tiny_store, windows(tiny_store, flip=False, box=(4, 10, 48, 48)), dataclasses.replace(CPU, motion=False)
    )
    assert (clips["flow"] == 0).all()
    assert torch.equal(clips["rgb"][:, :1].expand_as(clips["rgb"]), clips["rgb"])
    assert clips["rgb"].std() > 0


@pytest.mark.parametrize("rank", [0, 3])
def test_the_gpu_graph_decodes_on_the_local_rank(
    tiny_store: Store, tiny_video_store: Store, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph alone: not run on a GPU yet."""
    made: list[dict[str, Any]] = []
    original = Pipeline.__init__

    def construct(self: Pipeline, **arguments: Any) -> None:
        made.append(arguments)
        original(self, **arguments)

    monkeypatch.setattr(Pipeline, "__init__", construct)
    settings = dataclasses.replace(CPU, device="gpu", device_id=rank)
    plan = windows(tiny_store, flip=False, box=(4, 10, 48, 48))
    for store, stream, is_video, decoders in (
        (tiny_store, "rgb", False, 1),
        (tiny_store, "flow", False, 2),
        (tiny_video_store, "rgb", True, 1),
    ):
        source = StreamSource(store, stream, lambda i: plan, settings)  # type: ignore[arg-type]
        pipeline = build_pipeline(source, stream=stream, is_video=is_video, batch=2, settings=settings)  # type: ignore[arg-type]
        assert made[-1]["device_id"] == rank
        assert made[-1]["batch_size"] == (2 if is_video else 16)
        specs = operators(pipeline)
        assert [device for name, device in specs if name in ("ImageSlice", "Video")] == ["mixed"] * decoders
        assert {device for name, device in specs if name in ("Resize", "CropMirrorNormalize", "Slice", "Cat")} == {
            "gpu"
        }
        assert {device for name, device in specs if "ExternalSource" in name} == {"cpu"}


def operators(pipeline: Pipeline) -> list[tuple[str, str]]:
    """Schema name and device of every operator of the graph."""
    pipeline._build_graph()
    return [(type(op._op).__name__, op._op._device) for op in pipeline._ops]


def damaged_copy(store: Store, folder: Path, member: str) -> Store:
    """A copy of the store in which one member's bytes are not a JPEG, under a checksum that fits them."""
    import json
    import zlib

    shutil.copytree(store.path, folder)
    shard = folder / store._streams["rgb"].shard[0]
    with tarfile.open(shard) as tar:
        info = tar.getmember(member)
    data = bytearray(shard.read_bytes())
    data[info.offset_data : info.offset_data + info.size] = b"\0" * info.size
    shard.write_bytes(bytes(data))
    index = np.load(folder / "index.rgb.npy")
    row = np.flatnonzero(index["offset"] == info.offset_data)
    index["crc"][row] = zlib.crc32(b"\0" * info.size)
    np.save(folder / "index.rgb.npy", index)
    assert json.loads((folder / "store.json").read_text())
    return Store.open(folder)


def test_a_jpeg_that_cannot_be_decoded_is_named(tiny_store: Store, tmp_path: Path) -> None:
    video = tiny_store.videos[int(tiny_store.segments.video[0])]
    store = damaged_copy(tiny_store, tmp_path / "store", f"{video}/frame_0000000012.jpg")
    with pytest.raises(UserError, match=rf"{video}/frame_0000000012.jpg cannot be decoded"):
        decode(store, windows(store, flip=False, box=(4, 10, 48, 48)))


def test_a_flipped_byte_is_named_at_the_first_window_that_reads_it(tiny_store: Store, tmp_path: Path) -> None:
    shutil.copytree(tiny_store.path, tmp_path / "store")
    shard = tmp_path / "store" / tiny_store._streams["rgb"].shard[0]
    with tarfile.open(shard) as tar:
        info = tar.getmember(f"{tiny_store.videos[int(tiny_store.segments.video[0])]}/frame_0000000012.jpg")
    data = bytearray(shard.read_bytes())
    data[info.offset_data + info.size // 2] ^= 1
    shard.write_bytes(bytes(data))
    store = Store.open(tmp_path / "store")
    with pytest.raises(UserError, match=r"frame_0000000012.jpg is damaged"):
        decode(store, windows(store, flip=False, box=centre_of(store)))


def centre_of(store: Store) -> tuple[int, int, int, int]:
    y, x, h, w = centre_box(store.manifest.height, store.manifest.width).tolist()
    return y, x, h, w
