"""`bench e2e` times the real loop from inside: parts add up, every rank has its rows, and nothing is left behind."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from mmsada_hpc.bench.e2e_loop import PARTS, Stopwatch
from mmsada_hpc.bench.e2e_parts import account, checkpoints_per_update
from mmsada_hpc.cli import main
from mmsada_hpc.config import load_config
from mmsada_hpc.data.store import Store

SPLIT = [*PARTS, "checkpoint", "other"]


def words(store: Store, tmp_path: Path, *more: str) -> list[str]:
    """Two repeats of two small updates, whose medians are means and add up; rows go to rows.jsonl."""
    options = ["--repeats", "2", "--updates", "2", "--runs", str(tmp_path / "runs")]
    keys = [
        "data.source=[east]",
        "data.target=[west]",
        "data.num_frames=8",
        "data.rgb_step=2",
        "data.crop=32",
        "model.width=0.1",
        "model.batch_norm.group_size=4",
        "train.global_batch=16",
        "train.engine=ddp",
        "checkpoint.minutes=0",
    ]
    rows = ["--json", str(tmp_path / "rows.jsonl")]
    return ["bench", "e2e", *options, *rows, f"data.store={store.path}", *keys, *more]


def rows_by_name(tmp_path: Path) -> dict[tuple[int, str], dict[str, Any]]:
    """What was written, by rank and the name in front of the shape."""
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    return {(row["rank"], row["name"].partition(", mmsada")[0]): row for row in rows}


def assert_the_parts_are_the_whole(rows: Mapping[tuple[int, str], Mapping[str, Any]], rank: int) -> None:
    whole = rows[rank, "whole update"]
    assert sum(rows[rank, part]["value"] for part in SPLIT) == pytest.approx(whole["value"])
    assert all(rows[rank, part]["value"] > 0 for part in SPLIT)
    assert sum(rows[rank, part]["details"]["percent"] for part in SPLIT) == pytest.approx(100, abs=0.1)


def test_the_parts_of_an_update_add_up_and_nothing_is_left_behind(
    tiny_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.json"
    command = words(tiny_store, tmp_path, "--profile", str(trace), "train.micro_batch=8")
    assert main(command) == 0
    out = capsys.readouterr().out
    rows = rows_by_name(tmp_path)
    assert_the_parts_are_the_whole(rows, 0)
    whole = rows[0, "whole update"]
    assert 16_000 / whole["max"] <= rows[0, "throughput"]["value"] <= 16_000 / whole["min"]
    assert all(row["repeats"] == 2 and row["config_hash"] for row in rows.values())
    assert rows[0, "backward"]["name"] == "backward, mmsada 8x32^2 w0.1 N=16 fp32 DDP x1"
    rest = rows[0, "whole update"]["details"]["rest_ms"]
    assert sum(rest.values()) <= rows[0, "other"]["max"]
    assert rest["plan"] > 0
    assert rest["batch norm"] > 0
    one_save = rows[0, "whole update"]["details"]["one_checkpoint_ms"]
    assert rows[0, "checkpoint"]["value"] == pytest.approx(one_save / 170, rel=1e-3), "one at the end of 170 updates"
    assert out.count("throughput, mmsada") == 1
    assert list((tmp_path / "runs").iterdir()) == []
    events = json.loads(trace.read_text())["traceEvents"]
    assert sum(event["name"] == "Optimizer.step#SGD.step" for event in events) >= 3


def test_every_rank_has_its_rows_and_rank_0_tells_the_slowest(tiny_store: Store, tmp_path: Path) -> None:
    mpi = [str(Path(sys.executable).with_name("mpiexec")), "-n", "2"]
    command = [*mpi, sys.executable, "-m", "mmsada_hpc.cli", *words(tiny_store, tmp_path, "train.micro_batch=8")]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("throughput, mmsada") == 1, "rank 0 speaks for all"
    rows = rows_by_name(tmp_path)
    for rank in (0, 1):
        assert_the_parts_are_the_whole(rows, rank)
    for part in ("whole update", *SPLIT):
        slowest = rows[0, f"{part}, slowest rank"]
        assert slowest["value"] == max(rows[rank, part]["value"] for rank in (0, 1))
        assert slowest["value"] == rows[slowest["details"]["slowest_rank"], part]["value"]
    assert "x2" in rows[1, "forward"]["name"]


def test_the_overhead_is_split_into_what_it_is_for(
    tiny_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(tiny_store, tmp_path, "--overhead", "train.micro_batch=8", "--quick")) == 0
    rows = rows_by_name(tmp_path)
    bare, real = rows[0, "bare loop"], rows[0, "real loop"]
    assert real["baseline"] == bare["name"]
    assert bare["value"] > 0
    assert rows[0, "overhead"]["unit"] == "%"
    split = {name: row for (_, name), row in rows.items() if name.startswith("overhead: ")}
    assert {"overhead: batch norm", "overhead: gradient norm", "overhead: plan"} <= set(split)
    lowest, highest = (sum(row[end] for row in split.values()) for end in ("min", "max"))
    assert lowest <= real["value"] - bare["value"] <= highest
    assert split["overhead: plan"]["value"] > 0, "the plan is made anew although the clips stay"


def test_a_part_inside_another_is_taken_out_of_it() -> None:
    ticks = iter(
        [
            *(0.0, 0.0),  # the update and the outer part begin
            *(1.0, 4.0),  # inner
            *(5.0, 5.5),  # inner, the second time
            6.0,  # the outer part ends
            *(7.0, 17.0),  # apart
            18.0,
        ]
    )
    watched = Stopwatch(torch.device("cpu"), clock=lambda: next(ticks))
    watched.begin()
    with watched.part("outer"):
        for _ in range(2):
            with watched.part("inner"):
                pass
        watched.add("known otherwise", 0.5)
    with watched.apart():
        pass
    watched.end()
    watched.end()
    (update,) = watched.updates
    del update["cpu"]
    assert update == {"inner": 3.5, "known otherwise": 0.5, "outer": 2.0, "whole": 8.0}


def test_the_warm_up_is_left_out_and_a_checkpoint_counts_at_the_rate_of_the_config() -> None:
    config = load_config(None, ["checkpoint.every=10", "checkpoint.minutes=0"])
    warm_up, update = {"whole": 9.0, "cpu": 9.0}, {"whole": 1.0, "cpu": 2.0, "forward": 0.25, "averaging": 0.125}
    found = account(config, [warm_up] * 2 + [update] * 4, [7.0, 0.5, 1.0], [7.0, 0.0, 0.0], per_repeat=2)
    assert found.parts["forward"] == [250.0, 250.0]
    assert found.parts["communication"] == [125.0, 125.0]
    assert found.parts["other"] == [625.0, 625.0]
    assert found.parts["checkpoint"] == [50.0, 100.0]
    assert found.whole == [1050.0, 1100.0]
    assert found.cpu == [2000.0, 2000.0]


def test_checkpoints_come_by_steps_or_minutes_or_once_a_run() -> None:
    steps = ["train.stage1.steps=40", "train.stage2.steps=60"]
    for keys, update_s, expected in [
        (["checkpoint.every=0", "checkpoint.minutes=0"], 1.0, 1 / 100),
        (["checkpoint.every=20", "checkpoint.minutes=0"], 1.0, 1 / 20),
        (["checkpoint.every=20", "checkpoint.minutes=1"], 6.0, 1 / 10),
    ]:
        assert checkpoints_per_update(load_config(None, [*steps, *keys]), update_s) == pytest.approx(expected)


def test_wrong_options_are_one_line(tiny_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(tiny_store, tmp_path, "--updates", "0")) == 2
    assert "--updates" in capsys.readouterr().err
    assert main(words(tiny_store, tmp_path, "train.global_batch=6")) == 2
    assert "train.global_batch=6" in capsys.readouterr().err
    assert main(words(tiny_store, tmp_path, "data.source=[north]")) == 2
    assert "north" in capsys.readouterr().err
    assert not list((tmp_path / "runs").glob("*"))
    assert not torch.distributed.is_initialized()
