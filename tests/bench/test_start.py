"""`bench start` measures fresh processes, says what it measured, and keeps the rows."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmsada_hpc.bench.start import evict, read_all, rows_of, run_once
from mmsada_hpc.bench.start_child import Cost, Start
from mmsada_hpc.cli import main
from mmsada_hpc.data.store import Store
from mmsada_hpc.errors import UserError


def cost(seconds: float, megabytes: float) -> Cost:
    return Cost(3.0, seconds, 0.0, seconds, 300.0, megabytes, megabytes, 0.0, 128)


def test_the_mapped_index_is_compared_with_python_objects(tiny_store: Store) -> None:
    costs = {"mapped": [cost(0.1, 5.0)] * 2 + [cost(0.3, 9.0)], "objects": [cost(5.0, 900.0)] * 3}
    rows = rows_of(tiny_store, Start("mapped", "", "east", "west", 32), costs, cache="warm")
    plain, mapped, _, memory = rows
    assert (plain.value, plain.ratio, plain.details["way"]) == (5.0, None, "objects")
    assert (mapped.value, mapped.min, mapped.max, mapped.ratio) == (0.1, 0.1, 0.3, 50.0)
    assert mapped.baseline == plain.name and mapped.name == "seconds, mapped index, warm, 32 segments, N=32"
    assert (memory.unit, memory.ratio) == ("MB", 180.0)


def test_the_command_measures_and_appends_rows(
    tiny_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new/rows.jsonl"
    command = ["bench", "start", "--store", str(tiny_store.path), "--batch", "32", "--repeats", "1", "--alone"]
    assert main([*command, "--json", str(path)]) == 0
    assert "seconds, mapped index, evicted" in capsys.readouterr().out
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["unit"], row["details"]["cache"]) for row in rows] == [
        ("s", "warm"),
        ("MB", "warm"),
        ("s", "evicted"),
        ("MB", "evicted"),
    ]
    assert all(row["bench"] == "start" and row["details"]["segments"] == 32 and row["repeats"] == 1 for row in rows)
    assert all(0 < row["details"]["open_s"] < row["details"]["import_s"] for row in rows)


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
    command = [mpiexec, "-n", "2", sys.executable, "-m", "mmsada_hpc.cli", *words, "--json", str(tmp_path / "b.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("seconds, mapped index, warm") == 1, "rank 0 speaks for all"
    rows = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    assert [(row["rank"], row["world_size"]) for row in rows] == [(0, 2)] * 4 + [(1, 2)] * 4
