"""At the size of EPIC's D1-D3 (10,094 segments in 64 videos, 2.6 M frames in both streams) everything still holds."""

from pathlib import Path

import numpy as np
import pytest

from mmsada_hpc.bench.epic_store import epic_store
from mmsada_hpc.bench.start import run_once
from mmsada_hpc.bench.start_child import Start
from mmsada_hpc.cli import main
from mmsada_hpc.cluster.world import find_world
from mmsada_hpc.config import load_config
from mmsada_hpc.data.check import CheckOptions, check
from mmsada_hpc.data.epic_tables import read_epic_segments
from mmsada_hpc.data.manifest import STREAMS
from mmsada_hpc.data.pipeline import StreamPipeline
from mmsada_hpc.data.schedule import TrainSchedule
from mmsada_hpc.data.segments import SegmentRow
from mmsada_hpc.data.store import Store
from mmsada_hpc.errors import UserError
from mmsada_hpc.train.setup import Setup

SIZES = {  # segments and videos, spec 4.1
    ("D1", "train"): (1543, 22), ("D1", "test"): (435, 6), ("D2", "train"): (2495, 14),
    ("D2", "test"): (750, 5), ("D3", "train"): (3897, 13), ("D3", "test"): (974, 4),
}  # fmt: skip


def made_up() -> tuple[SegmentRow, ...]:
    """As many segments and videos as EPIC has, for where its tables are not at hand."""
    rows = []
    for (domain, split), (segments, videos) in SIZES.items():
        per_video = -(-segments // videos)
        for i in range(segments):
            video, place = divmod(i, per_video)
            start = 60 + place * 40_000 // per_video
            rows.append(
                SegmentRow(
                    f"{domain}{split}{i}", domain, split, f"{domain}_{split}_{video:02d}", start, start + 99, i % 8
                )
            )
    return tuple(rows)


@pytest.fixture(scope="module")
def segments(request: pytest.FixtureRequest) -> tuple[SegmentRow, ...]:
    """All of D1-D3: the real tables where the third-party data is, made-up ones of the same size elsewhere."""
    try:
        splits: Path = request.getfixturevalue("shared_data") / "epic_splits"
    except pytest.skip.Exception:
        return made_up()
    return tuple(read_epic_segments([(d, s, splits / f"{d}_{s}.pkl") for d, s in SIZES]))


@pytest.fixture(scope="module")
def store(segments: tuple[SegmentRow, ...], tmp_path_factory: pytest.TempPathFactory) -> Store:
    out = tmp_path_factory.mktemp("scale") / "epic"
    epic_store(out, segments)
    return Store.open(out)


def setup_of(store: Store, *overrides: str) -> Setup:
    """A run from D1 to D3 on one rank."""
    paths = [f"data.store={store.path}", "data.source=[D1]", "data.target=[D3]", "train.device=cpu"]
    return Setup(load_config(None, [*paths, *overrides]), store, find_world({}, host="alone"))


def test_the_store_has_epics_size_and_takes_little_room(store: Store) -> None:
    assert (len(store.segments), len(store.videos)) == (10_094, 64)
    assert {key: len(store.select(*key)) for key in SIZES} == {key: n for key, (n, _) in SIZES.items()}
    assert 2_400_000 < store.manifest.frames["rgb"] < 2_700_000
    assert abs(store.manifest.frames["flow"] - store.manifest.frames["rgb"]) < 4 * 64
    assert sum(entry.bytes for entry in store.manifest.shards) < 16_000_000


def test_made_up_tables_have_the_same_size() -> None:
    rows = made_up()
    assert (len(rows), len({row.video for row in rows}), len({row.uid for row in rows})) == (10_094, 64, 10_094)


def test_a_fresh_rank_plans_its_first_batch_in_under_a_second_and_200_mb(store: Store) -> None:
    cost = run_once(Start("mapped", str(store.path), "D1", "D3", 128))
    assert cost.clips == 128
    assert cost.cpu_s < 1.0
    assert cost.uss_mb < 200
    assert cost.rss_mb < 200


def test_every_window_that_can_be_drawn_is_there(store: Store) -> None:
    setup_of(store).checked()
    assert check(CheckOptions(store.path, sample=1, workers=1)).problems == []


def test_an_epoch_visits_every_segment_once(store: Store) -> None:
    planner = setup_of(store).planner
    pools = {0: store.select("D1", "train"), 1: store.select("D3", "train")}
    steps = [planner.step(1, step) for step in range(-(-3897 // 64) + 1)]
    for domain, pool in pools.items():
        visited = np.concatenate([plan.views["rgb"].segment_N[plan.domain_N == domain] for plan in steps])
        whole = len(pool) // 64 * 64  # the epoch ends inside the next step, which is shuffled
        assert len(np.unique(visited[:whole])) == whole
        assert np.array_equal(np.unique(visited[: whole + 64]), pool)


def test_the_loader_decodes_a_batch_from_it(store: Store) -> None:
    setup = setup_of(store, "train.global_batch=32", "train.micro_batch=32", "data.num_frames=8")
    schedule = TrainSchedule(setup.planner, setup.layout, 0, 1, 0)
    for stream, channels in zip(STREAMS, (3, 2), strict=True):
        pipeline = StreamPipeline(store, stream, schedule, setup.decoding, batch=32)
        clips_NTHWC = pipeline.next()
        assert clips_NTHWC.shape == (32, 8, 224, 224, channels)
        assert 0.2 < clips_NTHWC.std() < 0.6
        assert (clips_NTHWC[0, 0] != clips_NTHWC[0, 1]).any()


def test_inspect_reads_it(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(store.path), "--verify"]) == 0
    printed = capsys.readouterr().out
    assert "10094 in 64 videos" in printed
    assert "verified" in printed


def test_a_video_whose_flow_ends_too_early_is_named(tmp_path: Path) -> None:
    rows = tuple(SegmentRow(str(i), f"D{1 + i % 2}", "train", f"P08_{i:02d}", 100, 400 + i, 0) for i in range(8))
    epic_store(tmp_path / "store", rows, size=(64, 96))
    videos = tmp_path / "store/videos.csv"
    text = videos.read_text()
    assert "P08_05,flow,flow-00000.tar,2158,1,217\n" in text
    videos.write_text(text.replace(",2158,1,217", ",2158,1,198"))  # as many bytes, so the store still opens
    with pytest.raises(UserError) as caught:
        setup_of(Store.open(tmp_path / "store"), "data.target=[D2]").planner  # noqa: B018
    assert str(caught.value) == (
        "segment 5 (P08_05, frames 100-405): a window of data.num_frames=16 at data.rgb_step=2 needs flow frames "
        "50-202, the store has 1-198"
    )
