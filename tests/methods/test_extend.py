"""What a person adds without touching the loop: a method in a few lines, a third modality by a config entry."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mmsada_hpc.config import load_config
from mmsada_hpc.data.batch import Batch
from mmsada_hpc.data.store import Store
from mmsada_hpc.errors import UserError
from mmsada_hpc.methods import method_names
from mmsada_hpc.methods.base import _METHODS, ClipWeights, Factors, Features, Method, Moment, register, share
from mmsada_kernels import Scored
from tests.train.ranks import Job, run_ranks
from tests.train.test_law1 import rows, tiny_run

EIGHT = {
    "source_only", "adabn", "mmd", "mcd", "self_supervised", "adversarial", "mmsada", "supervised_target",
}  # fmt: skip


def test_every_row_of_the_paper_is_there_by_name() -> None:
    assert set(method_names()) == EIGHT | {"cdan", "target_entropy"}


def test_a_ninth_method_is_ten_lines(tiny_store: Store, tmp_path: Path) -> None:
    """Registered here and trained by the product's own entry point: nothing else was touched."""

    @register("feature_norm")
    class FeatureNorm(Method):
        """Classify, and keep target features short."""

        @staticmethod
        def weigh(domain_N: np.ndarray, corresponds_N: np.ndarray) -> ClipWeights:
            return {"ce": share(domain_N == 0), "norm": share(domain_N == 1)}

        def factors(self, at: Moment) -> Factors:
            return Factors({"ce": at.scale, "norm": 0.01 * at.ramp})

        def terms(self, features: Features, batch: Batch, reversal: Tensor) -> Mapping[str, Scored]:
            norm = sum((batch.weights["norm"] * x.pow(2).sum(dim=1)).sum() for x in features.values())
            return {"ce": self.classify(features, batch).scored, "norm": Scored(torch.as_tensor(norm))}

    from mmsada_hpc.cluster.join import join, leave
    from mmsada_hpc.cluster.world import find_world
    from mmsada_hpc.observe.screen import quiet_screen
    from mmsada_hpc.train.run import train_in_world
    from mmsada_hpc.train.stop import StopFlag

    config = load_config(None, tiny_run(tiny_store, tmp_path, "method.name=feature_norm", "train.engine=ddp"))
    try:
        world = join(find_world())
        with quiet_screen(tmp_path, 0) as screen:
            result = train_in_world(config, world, screen, StopFlag())
        leave()
    finally:
        del _METHODS["feature_norm"]
    assert result["label"] == "feature_norm"
    assert all(row["loss_norm"] > 0 for row in rows(tmp_path))


@pytest.fixture
def sound(tiny_store: Store, tmp_path: Path) -> Path:
    """Four numbers ten times a frame for every video, with the pitch of its class."""
    folder = tmp_path / "sound"
    for video, name in enumerate(tiny_store.videos):
        first, last = tiny_store.extent("rgb", video)
        time = np.arange((last - first + 1) * 10) / 10
        label = int(tiny_store.segments.label[np.flatnonzero(tiny_store.segments.video == video)[0]])
        path = folder / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.sin(time[:, None] * (label + 1) + np.arange(4)).astype(np.float32))
    return folder


def sound_words(folder: Path, **changes: object) -> str:
    entry = {"arrays": str(folder), "channels": 4, "rate": 10, "length": 64, "backbone": "conv1d", **changes}
    return f"data.streams={json.dumps({'sound': entry})}"


def test_three_streams_train_by_a_config_entry(tiny_store: Store, sound: Path, tmp_path: Path) -> None:
    """MM-SADA on RGB, flow and sound: a discriminator and a classifier more, correspondence over all three; the same on
    two ranks as on one.
    """
    more = (sound_words(sound), "train.engine=ddp", "train.precision=fp64", "train.global_batch=16")
    for ranks in (1, 2):
        run_ranks(ranks, [Job(tiny_run(tiny_store, tmp_path / str(ranks), *more, f"train.micro_batch={16 // ranks}"))])
    one, two = (rows(tmp_path / ranks) for ranks in ("1", "2"))
    assert {"loss_domain_rgb", "loss_domain_flow", "loss_domain_sound"} <= one[-1].keys()
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-8)
    result = json.loads((tmp_path / "1/result.json").read_text())
    scores = result["evaluations"]["target/test"]
    assert {"top1_rgb", "top1_flow", "top1_sound", "domain_acc_sound", "corr_acc"} <= scores.keys()
    state = torch.load(tmp_path / "1/checkpoints/stage2-step00000002/state.pt", weights_only=True)["model"]
    assert state["network.streams.sound.layers.0.weight"].shape[1] == 4
    assert state["method.correspondence.0.weight"].shape[1] == sum(
        state[f"method.classifier.{s}.weight"].shape[1] for s in ("rgb", "flow", "sound")
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 5}, r"east/across_00.npy: float32 numbers of shape .*channels=5 wants \(rows, 5\)"),
        ({"rate": 30}, r"east/across_00.npy: 400 rows for 40 RGB frames; data.streams.sound.rate=30 rows a frame"),
        ({"backbone": "conv2d"}, "data.streams.sound.backbone conv2d: no such backbone; did you mean conv1d"),
        ({"arrays": "/nowhere"}, "/nowhere/east/across_00.npy: cannot be read"),
    ],
)
def test_a_wrong_stream_is_named(
    tiny_store: Store, sound: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    from mmsada_hpc.cluster.world import find_world
    from mmsada_hpc.train.setup import Setup

    words = tiny_run(tiny_store, tmp_path, sound_words(sound, **changes), "train.global_batch=16")
    config = load_config(None, words)
    with pytest.raises(UserError, match=message):
        Setup(config, tiny_store, find_world()).checked()
