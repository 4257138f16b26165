"""A killed or failed `prepare` goes on where it was; what it had finished is verified and kept."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mmsada_hpc.data.outfolder import begin, locked
from mmsada_hpc.data.prepare import PrepareOptions, prepare, store_plan
from mmsada_hpc.data.store import Store
from mmsada_hpc.errors import UserError
from tests.conftest import CHECKOUT
from tests.data.test_prepare import contents

PROGRAM = """
import sys
from pathlib import Path
from mmsada_hpc.data.prepare import PrepareOptions, prepare
videos, out, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
prepare(PrepareOptions(out, videos=videos, labels=videos / "labels.csv", size="64x80", workers=workers))
"""


@pytest.fixture
def options(tiny_videos: Path, tmp_path: Path) -> PrepareOptions:
    return PrepareOptions(
        tmp_path / "store", videos=tiny_videos, labels=tiny_videos / "labels.csv", size=("64x80"), workers=1
    )


def kill_after_first_shard(options: PrepareOptions, workers: int = 1) -> None:
    arguments = map(str, (sys.executable, "-c", PROGRAM, options.videos, options.out, workers))
    process = subprocess.Popen(list(arguments), cwd=CHECKOUT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (options.out / "build/00000.json").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_a_killed_run_goes_on_with_the_shards_it_had(options: PrepareOptions, tiny_store: Store) -> None:
    kill_after_first_shard(options)
    with pytest.raises(UserError, match="not a store"):
        Store.open(options.out)
    built = prepare(options)
    assert built.shards_kept >= 1
    assert contents(options.out) == contents(tiny_store.path)


def test_workers_end_with_a_killed_run(options: PrepareOptions, tiny_store: Store) -> None:
    kill_after_first_shard(options, workers=2)
    time.sleep(0.2)
    before = {path: path.stat().st_size for path in options.out.iterdir()}
    time.sleep(0.5)
    assert {path: path.stat().st_size for path in options.out.iterdir()} == before
    assert prepare(options).shards_kept >= 1
    assert contents(options.out) == contents(tiny_store.path)


def test_two_runs_do_not_work_in_one_folder(options: PrepareOptions) -> None:
    begin(options.out, store_plan(options).options)
    with locked(options.out), pytest.raises(UserError, match="another `mmsada prepare` is at work"):
        prepare(options)
    assert not prepare(options).already


def test_a_finished_shard_that_was_damaged_is_made_again(options: PrepareOptions, tiny_store: Store) -> None:
    kill_after_first_shard(options)
    shard = options.out / "rgb-00000.tar"
    data = bytearray(shard.read_bytes())
    data[5000] ^= 1
    shard.write_bytes(data)
    prepare(options)
    assert contents(options.out) == contents(tiny_store.path)


def test_an_unfinished_store_is_not_continued_with_other_options(options: PrepareOptions) -> None:
    kill_after_first_shard(options)
    with pytest.raises(UserError, match=r"jpeg_quality = 95, now it is 90"):
        prepare(replace(options, jpeg_quality=90))


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may pass 300 kB: the same failure as a quota."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def assert_full(options: PrepareOptions) -> None:
    with pytest.raises(
        UserError, match=r"(rgb|flow)-0000\d\.tar: the disk is full .*finished shards are kept"
    ) as caught:
        prepare(options)
    assert "\n" not in str(caught.value)
    assert not (options.out / "store.json").exists()
    assert not list(options.out.glob("*.tmp"))


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_that_may_not_grow_is_named(options: PrepareOptions, workers: int) -> None:
    assert_full(replace(options, workers=workers))


def test_a_full_disk_is_named_and_the_run_goes_on_once_there_is_room(
    options: PrepareOptions, tiny_store: Store
) -> None:
    options.out.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4000k", "tmpfs", options.out], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("no right to mount a small tmpfs here; the quota test covers the same path")
    try:
        assert_full(options)
        assert list(options.out.glob("rgb-*.tar"))
        subprocess.run(["mount", "-o", "remount,size=64m", options.out], check=True)
        assert prepare(options).shards_kept >= 1
        assert contents(options.out) == contents(tiny_store.path)
    finally:
        os.sync()
        subprocess.run(["umount", options.out], check=True)
