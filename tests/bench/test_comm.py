"""`bench comm`: all-reduce and training engines on real ranks."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from mmsada_hpc.bench.comm import find_engines, parse_size, run_group
from mmsada_hpc.bench.comm_reduce import Team, Times, make_teams, rows_of, words_of
from mmsada_hpc.cli import main
from tests.train.ranks import free_port

MPIEXEC = str(Path(sys.executable).with_name("mpiexec"))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
BENCH = [sys.executable, "-m", "mmsada_hpc.cli", "bench", "comm", "--quick", "--repeats", "2"]


def rows_in(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_bandwidth_is_what_each_link_carries() -> None:
    team, mib = Team((0, 1, 2, 3), 2), 1 << 20
    found = [Times("MPI", [0.004], 1, {}), Times("gloo", [0.002, 0.001, 0.003], 5, {"interface": "ib0"})]
    plain, gloo = rows_of(found, mib, team, hosts=["a", "a", "b", "b"])
    assert gloo.name == "gloo all-reduce 1 MiB, 4 ranks on 2 nodes"
    assert (gloo.value, gloo.min, gloo.max, gloo.unit, gloo.ratio) == (2.0, 1.0, 3.0, "ms", 2.0)
    assert gloo.details["algbw_GB_s"] == pytest.approx(mib / 0.002 / 1e9)
    assert gloo.details["busbw_GB_s"] == pytest.approx(1.5 * mib / 0.002 / 1e9)
    assert (gloo.details["hosts"], gloo.details["interface"]) == (["a", "a", "b", "b"], "ib0")
    assert gloo.baseline == plain.name


def test_on_several_hosts_one_rank_of_each_and_one_host_are_teams_too() -> None:
    assert make_teams(["a", "a"]) == [Team((0, 1), 1)]
    assert make_teams(["a", "b"]) == [Team((0, 1), 2)]
    # Round robin over the hosts, and a host with one rank alone.
    assert make_teams(["c", "a", "b", "a", "b"]) == [Team((0, 1, 2, 3, 4), 3), Team((0, 1, 2), 3), Team((1, 3), 1)]


@pytest.mark.parametrize(("text", "size"), [("32K", 32768), ("4M", 1 << 22), ("1GiB", 1 << 30), ("100", 100)])
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert parse_size(words_of(size).replace(" ", "")) == size


@pytest.mark.parametrize("text", ["0", "6", "K", "-4", "1T", "many"])
def test_a_wrong_size_is_told(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="not a size"):
        parse_size(text)


def test_alone_it_starts_its_own_ranks_and_keeps_standard_output_for_rows() -> None:
    words = [*BENCH, "--part", "all-reduce", "--sizes", "4K", "32K", "--json", "-"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    rows = rows_in(done.stdout)
    assert [row["name"] for row in rows] == [
        f"{way} all-reduce {size}, 2 ranks on 1 node" for size in ("4 KiB", "32 KiB") for way in ("MPI", "gloo")
    ]
    assert all(row["value"] > 0 and row["repeats"] == 2 and row["world_size"] == 2 for row in rows)
    assert rows[0]["command"].endswith("--json -"), "the command that was typed, not that of the ranks"
    assert "2 ranks are started by mpiexec" in done.stderr and "busbw" in done.stderr


def test_ranks_that_mpi_does_not_know_are_told_so_and_measured_without_it(tmp_path: Path) -> None:
    path, port = tmp_path / "rows.jsonl", str(free_port())
    words = [*BENCH, "--part", "all-reduce", "--sizes", "4K", "--json", str(path)]
    known = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        subprocess.Popen(
            words, stdout=subprocess.PIPE, text=True, env={**ENVIRONMENT, **known, "RANK": rank, "LOCAL_RANK": rank}
        )
        for rank in ("0", "1")
    ]
    try:
        said = [rank.communicate(timeout=120)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert "MPI is not measured: rank 0 of 2 is 0 of 1 to mpi4py" in said[0] and said[1] == ""
    assert [row["name"] for row in rows_in(path.read_text())] == ["gloo all-reduce 4 KiB, 2 ranks on 1 node"]


def test_ranks_that_take_too_long_are_ended_with_all_they_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    program = f"import os, time; open({str(pids)!r}, 'a').write(str(os.getpid()) + '\\n'); time.sleep(60)"
    words = [MPIEXEC, "-n", "2", sys.executable, "-c", program]
    assert run_group(words, ENVIRONMENT, longest_s=5) is None
    ranks = [int(line) for line in pids.read_text().splitlines()]
    assert len(ranks) == 2
    assert not [pid for pid in ranks if psutil.pid_exists(pid)]


def test_engines_are_compared_with_plain_ddp(tmp_path: Path) -> None:
    path, trace = tmp_path / "rows.jsonl", tmp_path / "trace.json"
    words = [MPIEXEC, "-n", "2", *BENCH, "--part", "engines", "--clips", "2", "--precision", "bf16"]
    words += ["--json", str(path), "--profile", str(trace)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    rows = {row["details"]["engine"]: row for row in rows_in(path.read_text())}
    assert list(rows) == [
        "DDP",
        "no communication",
        "DDP contiguous",
        "DeepSpeed stage 0",
        "DeepSpeed stage 0 overlap",
        "DeepSpeed stage 1",
        "DeepSpeed stage 1 overlap",
        "DeepSpeed stage 2",
    ]
    assert {row["baseline"] for name, row in rows.items() if name != "DDP"} == {rows["DDP"]["name"]}
    assert rows["DDP"]["details"]["gradient_MB"] == 2 * rows["DeepSpeed stage 1"]["details"]["gradient_MB"]
    assert rows["DeepSpeed stage 1"]["details"]["memory_format"] == "contiguous"
    details = {name: row["details"] for name, row in rows.items()}
    for name, one in details.items():
        is_right = one["update_difference"] < 0.02
        assert is_right == (name != "no communication"), "an update without communication is another one"
        assert one["held_MB"] > one["optimizer_MB"] > 0
    # What two ranks send of an all-reduce is the message; ZeRO sends the half of the weights that is its own, too.
    weights_MB = details["DDP"]["gradient_MB"]
    expected = {"DDP": weights_MB, "DeepSpeed stage 0 overlap": weights_MB / 2, "DeepSpeed stage 2": weights_MB}
    for name, sent_MB in expected.items():
        # Others may send over this machine's loopback meanwhile.
        assert details[name]["sent_MB"] > 0.98 * sent_MB, name
    assert "gloo:all_reduce" in trace.with_name("trace.engines.rank0.json").read_text()


def test_engines_are_named_with_what_their_gradients_travel_in() -> None:
    assert find_engines(None, "fp32")[:2] == ("DDP", "no communication")
    every = find_engines(["all"], "fp32")
    assert len(set(every)) == len(every)
    assert {"DDP bf16 gradients", "DDP PowerSGD", "DeepSpeed stage 2 bf16 gradients"} < set(every)
    assert "DeepSpeed stage 0 fp32 gradients" not in every, "that is DeepSpeed stage 0"
    assert "DeepSpeed stage 0 fp32 gradients" in find_engines(["all"], "bf16")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ranks", "1"], "--ranks must be at least 2"),
        (["--clips", "0"], "--clips"),
        (["--steps", "0"], "--steps"),
        (["--engines", "Horovod"], "'Horovod': no such engine"),
    ],
)
def test_a_wrong_option_is_told_before_ranks_are_started(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "comm", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_failure_of_the_ranks_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    words = [*BENCH, "--part", "all-reduce", "--sizes", "4K", "--json", str(tmp_path / "file" / "rows")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, env=ENVIRONMENT)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and "cannot be written" in done.stderr
