"""DALI's GPU decoder gives the CPU's pixels."""

from typing import Any, Literal

import numpy as np
import pytest
import torch

for package in ("nvidia.dali", "av", "cv2", "pydantic"):
    pytest.importorskip(package, reason=f"{package} is not installed: DALI on a GPU was not tried")

from mmsada_hpc.data.graph import PipelineSettings  # noqa: E402
from mmsada_hpc.data.loader import Loader  # noqa: E402
from mmsada_hpc.data.prepare import PrepareOptions, prepare  # noqa: E402
from mmsada_hpc.data.schedule import TestSchedule, plan_test_windows  # noqa: E402
from mmsada_hpc.data.store import Store  # noqa: E402
from mmsada_hpc.data.windows import WindowRule  # noqa: E402
from tests.conftest import write_video  # noqa: E402

RULE = WindowRule(num_frames=8, rgb_step=2, flow_stride=2)


@pytest.fixture(scope="module", params=["jpeg", "video"])
def store(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("gpu")
    lines = ["file,domain,split,class"]
    for i in range(4):
        write_video(folder / "videos" / f"{i}.webm", motion=(1.5, 0.5), seed=i)
        lines.append(f"{i}.webm,{'east' if i < 2 else 'west'},train,across")
    labels = folder / "videos" / "labels.csv"
    labels.write_text("\n".join(lines) + "\n")
    out = folder / "store"
    prepare(PrepareOptions(out, videos=folder / "videos", labels=labels, size="64x80", rgb=request.param, workers=1))
    return Store.open(out)


def decoded(store: Store, device: Literal["cpu", "gpu"]) -> dict[str, torch.Tensor]:
    segments, size = store.segments, (store.manifest.height, store.manifest.width)
    plan = plan_test_windows(
        rows=np.arange(len(segments.uid)),
        start=segments.start,
        stop=segments.stop,
        label=segments.label,
        domain=0,
        rule=RULE,
        windows=1,
        frame_size=size,
    )
    settings = PipelineSettings(RULE, 48, device, 0 if device == "gpu" else None, threads=1, prefetch=2)
    return dict(Loader(store, TestSchedule(plan, batch=len(plan)), settings).next().clips_NTHWC)


def test_the_gpu_decodes_the_cpus_pixels(store: Store) -> None:
    """Two JPEG decoders differ by a few grey levels at most, and rarely."""
    on_gpu, on_cpu = decoded(store, "gpu"), decoded(store, "cpu")
    for stream, wanted in on_cpu.items():
        found = on_gpu[stream]
        assert found.device.type == "cuda" and found.shape == wanted.shape
        off = (found.cpu() - wanted).abs() * 128
        assert off.mean() < 0.5 and off.max() <= 8, f"{stream}: {off.mean():.2f} grey levels, {off.max():.0f} at most"


def test_clips_of_the_gpu_are_ndhwc_without_a_copy(store: Store) -> None:
    clips_NTHWC = decoded(store, "gpu")["rgb"]
    assert clips_NTHWC.movedim(-1, 1).is_contiguous(memory_format=torch.channels_last_3d)
