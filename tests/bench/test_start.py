"""`bench start` measures fresh processes, says what it measured, and keeps the row."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmsada_hpc.bench.start import Median, describe, evict, read_all, run_once
from mmsada_hpc.bench.start_child import Cost, Start
from mmsada_hpc.cli import main
from mmsada_hpc.data.store import Store
from mmsada_hpc.errors import UserError


def cost(seconds: float, megabytes: float) -> Cost:
    return Cost(3.0, seconds, 0.0, seconds, 300.0, megabytes, megabytes, 0.0, 128)


def test_ratios_are_to_the_mapped_index_in_the_same_cache_state(tiny_store: Store) -> None:
    found = [
        Median("mapped", "warm", cost(0.1, 5.0), 0.1, 0.2),
        Median("objects", "warm", cost(5.0, 900.0), 5.0, 6.0),
        Median("mapped", "evicted", cost(0.2, 5.0), 0.2, 0.3),
        Median("objects", "evicted", cost(5.0, 900.0), 5.0, 6.0),
    ]
    lines = [line.split() for line in describe(tiny_store, found, repeats=3).splitlines()]
    objects = [line for line in lines if "tuple" in line]
    assert [line[7:9] for line in objects] == [["50.0", "180.0"], ["25.0", "180.0"]]


def test_the_command_measures_and_appends_a_row(
    tiny_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "new/rows.jsonl"
    command = ["bench", "start", "--store", str(tiny_store.path), "--batch", "32", "--repeats", "1", "--alone"]
    assert main([*command, "--jsonl", str(rows)]) == 0
    assert "first batch of 32 clips" in capsys.readouterr().out
    (row,) = [json.loads(line) for line in rows.read_text().splitlines()]
    assert (row["bench"], row["segments"], row["repeats"]) == ("start", 32, 1)
    assert [(one["way"], one["cache"]) for one in row["medians"]] == [("mapped", "warm"), ("mapped", "evicted")]
    assert all(0 < one["cost"]["open_s"] < one["cost"]["import_s"] for one in row["medians"])
    assert row["versions"]["torch"]


def test_a_start_that_fails_is_one_line(tiny_store: Store) -> None:
    with pytest.raises(UserError, match=r"could not be started from: .*nowhere") as caught:
        run_once(Start("mapped", str(tiny_store.path), "nowhere", "west", 32))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "message"), [("--source=north", "no segments of domain 'north'"), ("--repeats=0", "--repeats")]
)
def test_a_wrong_option_is_told_before_anything_is_started(
    tiny_store: Store, capsys: pytest.CaptureFixture[str], option: str, message: str
) -> None:
    begun = time.monotonic()
    assert main(["bench", "start", "--store", str(tiny_store.path), option]) == 2
    assert message in capsys.readouterr().err
    assert time.monotonic() - begun < 2


def test_evicting_a_file_leaves_it_readable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    evict([tmp_path / "file"])
    read_all([tmp_path / "file"])
    assert (tmp_path / "file").read_bytes() == b"x" * 100_000


def test_ranks_under_mpiexec_start_beside_each_other_and_rank_0_writes_all_rows(
    tiny_store: Store, tmp_path: Path
) -> None:
    mpiexec = str(Path(sys.executable).with_name("mpiexec"))
    words = ["bench", "start", "--store", str(tiny_store.path), "--repeats", "1", "--alone", "--batch", "32"]
    command = [mpiexec, "-n", "2", sys.executable, "-m", "mmsada_hpc.cli", *words, "--jsonl", str(tmp_path / "b.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 rows added") == 1
    rows = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    assert [(row["rank"], row["world_size"]) for row in rows] == [(0, 2), (1, 2)]
