"""A store gives windows by one read, names what is missing or damaged, and survives fork and pickle."""

import multiprocessing
import os
import pickle
import shutil
import tarfile
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmsada_hpc.data.manifest import FileEntry, FlowConvention, StoreManifest
from mmsada_hpc.data.store import Store, sha256_file
from mmsada_hpc.data.tables import INDEX_DTYPE, SEGMENT_COLUMNS, VIDEO_COLUMNS, csv_bytes
from mmsada_hpc.errors import UserError


@pytest.fixture
def copied(tiny_store: Store, tmp_path: Path) -> Path:
    """A copy of the tiny store that a test may damage."""
    return Path(shutil.copytree(tiny_store.path, tmp_path / "copy"))


def flip_byte(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        value = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([value ^ 0x10]))


def test_a_window_holds_the_bytes_of_the_tar_members(tiny_store: Store) -> None:
    name = tiny_store.videos[3]
    shard = tiny_store.path / tiny_store.describe("rgb", 3, 5).split(":")[0]
    with tarfile.open(shard) as tar:
        expected = [tar.extractfile(f"{name}/frame_{n:010d}.jpg") for n in (5, 7, 9)]
        assert [view.tobytes() for view in tiny_store.read_frames("rgb", 3, [5, 7, 9])] == [
            e.read() for e in expected if e
        ]


def test_flow_comes_as_u_then_v_of_each_frame(tiny_store: Store) -> None:
    name, shard = tiny_store.videos[0], tiny_store.path / tiny_store.describe("flow", 0, 1).split(":")[0]
    with tarfile.open(shard) as tar:
        members = [tar.extractfile(f"{name}/{axis}/frame_{n:010d}.jpg") for n in (4, 5) for axis in "uv"]
        assert [view.tobytes() for view in tiny_store.read_frames("flow", 0, np.array([4, 5]))] == [
            m.read() for m in members if m
        ]


def test_frames_may_repeat_and_come_in_any_order(tiny_store: Store) -> None:
    one, other = tiny_store.read_frames("rgb", 1, [8])[0].tobytes(), tiny_store.read_frames("rgb", 1, [2])[0].tobytes()
    assert [view.tobytes() for view in tiny_store.read_frames("rgb", 1, [8, 2, 8])] == [one, other, one]


def test_a_window_is_one_read(tiny_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    real = os.preadv

    def counted(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        reads.append(offset)
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", counted)
    assert len(tiny_store.read_frames("flow", 2, range(1, 17))) == 32
    assert len(reads) == 1


def test_every_stored_frame_has_the_size_in_the_manifest(tiny_store: Store) -> None:
    size = (tiny_store.manifest.height, tiny_store.manifest.width)
    for video in range(len(tiny_store.videos)):
        rgb, flow = (
            cv2.imdecode(tiny_store.read_frames("rgb", video, [1])[0], -1),
            cv2.imdecode(tiny_store.read_frames("flow", video, [1])[0], -1),
        )
        assert rgb is not None
        assert flow is not None
        assert rgb.shape == (*size, 3)
        assert flow.shape == size


def test_select_gives_the_segments_of_a_domain_and_split(tiny_store: Store) -> None:
    rows = tiny_store.select("west", "train")
    assert len(rows) == 12
    assert (np.diff(rows) > 0).all()
    assert {tiny_store.manifest.domains[d] for d in tiny_store.segments.domain[rows]} == {"west"}
    assert len(tiny_store.select("west", "all")) == 16


@pytest.mark.parametrize(("domain", "split"), [("north", "train"), ("west", "validation")])
def test_an_empty_selection_names_what_exists(tiny_store: Store, domain: str, split: str) -> None:
    with pytest.raises(UserError, match="east/test, east/train, west/test, west/train"):
        tiny_store.select(domain, split)


def test_a_missing_frame_names_video_and_frame(tiny_store: Store) -> None:
    with pytest.raises(UserError, match=f"{tiny_store.videos[2]} has no flow frame 18 .it has 1 to 17"):
        tiny_store.read_frames("flow", 2, [16, 17, 18])
    with pytest.raises(UserError, match="no rgb frame 0"):
        tiny_store.read_frames("rgb", 2, [0])


def test_a_flipped_byte_is_named_at_the_read_and_by_verify(copied: Path) -> None:
    store = Store.open(copied)
    shard = store.describe("flow", 4, 3).split(":")[0]
    payload = store.read_frames("flow", 4, [3])[1].tobytes()
    flip_byte(copied / shard, (copied / shard).read_bytes().index(payload) + len(payload) // 2)
    with pytest.raises(UserError, match=rf"{shard}: {store.videos[4]}/v/frame_0000000003.jpg is damaged .*--verify"):
        store.read_frames("flow", 4, [2, 3, 4])
    assert len(store.read_frames("flow", 4, [4, 5])) == 4
    problems = store.verify()
    assert len(problems) == 1
    assert shard in problems[0]


def test_a_truncated_shard_is_named_when_the_store_is_opened(copied: Path) -> None:
    shard = copied / "rgb-00000.tar"
    os.truncate(shard, shard.stat().st_size - 512)
    with pytest.raises(UserError, match=r"rgb-00000.tar: \d+ bytes, store.json says"):
        Store.open(copied)


def test_a_shard_cut_off_while_in_use_is_named(copied: Path) -> None:
    store = Store.open(copied)
    os.truncate(copied / store.describe("rgb", 0, 1).split(":")[0], 1000)
    with pytest.raises(UserError, match="truncated"):
        store.read_frames("rgb", 0, [20])


def test_a_missing_shard_is_named(copied: Path) -> None:
    (copied / "flow-00000.tar").unlink()
    with pytest.raises(UserError, match=r"flow-00000.tar: cannot be opened .*store.json lists it"):
        Store.open(copied)


def test_a_folder_without_manifest_is_not_a_store(copied: Path) -> None:
    (copied / "store.json").unlink()
    with pytest.raises(UserError, match="not a store"):
        Store.open(copied)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "damaged manifest"), ('{"version": 99}', "store version 99"), ('{"version": 1}', "damaged manifest")],
)
def test_a_bad_manifest_is_named(copied: Path, text: str, message: str) -> None:
    (copied / "store.json").write_text(text)
    with pytest.raises(UserError, match=message):
        Store.open(copied)


def test_a_damaged_table_is_found_by_verify(copied: Path) -> None:
    flip_byte(copied / "index.rgb.npy", 200)
    assert [problem for problem in Store.open(copied).verify() if "index.rgb.npy" in problem]


def _read_in_child(store: Store, video: int) -> list[bytes]:
    return [view.tobytes() for view in store.read_frames("rgb", video, [3, 5])]


def test_a_pickled_store_reads_the_same(tiny_store: Store) -> None:
    again = pickle.loads(pickle.dumps(tiny_store))
    assert _read_in_child(again, 5) == _read_in_child(tiny_store, 5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 warns of fork beside threads
def test_forked_readers_do_not_disturb_each_other(tiny_store: Store) -> None:
    expected = [_read_in_child(tiny_store, video) for video in range(8)]  # opens the shards before the fork
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.starmap(_read_in_child, [(tiny_store, video) for video in range(8)] * 4) == expected * 4


def test_a_closed_store_opens_its_shards_again(tiny_store: Store) -> None:
    before = _read_in_child(tiny_store, 0)
    tiny_store.close()
    assert _read_in_child(tiny_store, 0) == before


def test_the_two_rgb_forms_are_not_mixed_up(tiny_store: Store, tiny_video_store: Store) -> None:
    with pytest.raises(UserError, match="stored as video"):
        tiny_video_store.read_frames("rgb", 0, [1])
    with pytest.raises(UserError, match="stored as JPEG"):
        tiny_store.read_video(0)


def test_opening_a_store_of_epics_size_takes_under_a_second(tmp_path: Path) -> None:
    frames = 1_700_000
    contents = {
        "segments.csv": csv_bytes(SEGMENT_COLUMNS, [(i, "D1", "train", "P01_01", 1, 99, i % 8) for i in range(10_094)]),
        "videos.csv": csv_bytes(
            VIDEO_COLUMNS, [("P01_01", s, f"{s}-00000.tar", 0, 1, frames // 2) for s in ("rgb", "flow")]
        ),
        "rgb-00000.tar": b"",
        "flow-00000.tar": b"",
    }
    for name, payload in contents.items():
        (tmp_path / name).write_bytes(payload)
    for stream in ("rgb", "flow"):
        np.save(tmp_path / f"index.{stream}.npy", np.zeros(frames, INDEX_DTYPE))
    names = [*contents, "index.rgb.npy", "index.flow.npy"]
    entries = tuple(FileEntry(name, (tmp_path / name).stat().st_size, sha256_file(tmp_path / name)) for name in names)
    manifest = StoreManifest(
        "epic", ("take",) * 8, ("D1",), 60.0, 256, 456, "jpeg", FlowConvention("tvl1"), (), entries, {}
    )
    (tmp_path / "store.json").write_text(manifest.to_json())
    begun = time.process_time()
    store = Store.open(tmp_path)
    assert time.process_time() - begun < 1.0
    assert len(store.segments) == 10_094
