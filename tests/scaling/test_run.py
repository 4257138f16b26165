"""`mmsada scale run`: a study that really trains, is stopped half-way, goes on where it was, and does nothing twice."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mmsada_hpc.cli import main
from mmsada_hpc.data.store import Store
from mmsada_hpc.scaling.study import read_study
from tests.scaling.studies import real_study

CHECKOUT = Path(__file__).resolve().parents[2]
# Two batches, at the larger one two rules and another optimiser; the first cell is long enough to be stopped in.
PARTS = {
    "batch": {"global_batch": [8, 16], "micro_batch": 8, "optimizer": "sgd", "rule": ["linear", "sqrt"]},
    "layerwise": {"global_batch": 16, "micro_batch": 8, "optimizer": "lars", "rule": "sqrt"},
}


@contextmanager
def scale_run(study: Path, *words: str) -> Iterator["subprocess.Popen[str]"]:
    """The command as a process; whatever happens to the test, it and what it started are gone afterwards."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mmsada_hpc.cli", "scale", "run", str(study), *words]
    with subprocess.Popen(
        command, cwd=CHECKOUT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def until(is_so: Callable[[], bool], *, what: str, timeout: float = 100) -> None:
    begin = time.monotonic()
    while not is_so():
        assert time.monotonic() - begin < timeout, f"not within {timeout:.0f} s: {what}"
        time.sleep(0.05)


def rows(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def training_steps(run_dir: Path) -> list[int]:
    return [row["global_step"] for row in rows(run_dir) if row["kind"] == "train"]


@pytest.mark.timeout(600)
def test_a_study_of_four_cells_trains_is_stopped_half_way_and_goes_on(
    tiny_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = {"train.stage1.steps": 24, "train.stage2.steps": 8, "checkpoint.every": 0, "train.engine": "ddp"}
    study = real_study(tiny_store, tmp_path, PARTS, cluster="debug", set=lengths)
    base, linear, sqrt, lars = (cell.config.run.dir for cell in read_study(study).cells)
    with scale_run(study, "--parallel", "2") as first:
        until(lambda: len(training_steps(base)) > 2, what="the first cell at work")
        first.send_signal(signal.SIGINT)
        said = first.communicate(timeout=100)[0]
    assert first.returncode == 130, said
    assert "the same command goes on" in said
    stopped_at = training_steps(base)[-1]
    assert stopped_at < 32 and not (base / "result.json").exists()
    assert next(cell.state for cell in read_study(study).cells) == "begun"
    with scale_run(study, "--parallel", "2") as second:
        said = second.communicate(timeout=250)[0]
    assert second.returncode == 0, said
    assert f"going on from step {stopped_at} of stage 1" in (base / "launch.log").read_text()
    assert training_steps(base) == list(range(1, 33)), "no update twice, none left out"
    assert [len(training_steps(run_dir)) for run_dir in (linear, sqrt, lars)] == [16, 16, 16], "as many clips"
    assert all(cell.state == "finished" for cell in read_study(study).cells)
    assert main(["scale", "run", str(study)]) == 0
    assert "nothing to run" in capsys.readouterr().out


def test_a_second_command_on_the_same_study_is_refused(
    tiny_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mmsada_hpc.cluster.queue import only_submitter

    study = real_study(tiny_store, tmp_path, PARTS, cluster="debug")
    with only_submitter([tmp_path / "runs"]):
        assert main(["scale", "run", str(study)]) == 2
    assert "another submit has been at this run" in capsys.readouterr().err


def test_a_dry_run_says_what_would_be_run_where_and_runs_nothing(
    tiny_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = tmp_path / "slurm.yaml"
    profile.write_text("executor: slurm\n")
    part = {"nodes": [1, 2], "micro_batch": [4, 5], "optimizer": ["sgd", "lars"]}
    study = real_study(tiny_store, tmp_path, {"weak": part}, cluster=str(profile))
    assert main(["scale", "run", str(study), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "left out: 4 cells that cannot run" in printed
    assert "would run: an array of 2 cells, each on 1 node x 1 ranks" in printed
    assert "would run: an array of 2 cells, each on 2 nodes x 1 ranks" in printed
    assert not (tmp_path / "runs").exists()


def test_a_store_that_is_not_there_is_told_before_anything_is_queued(
    tiny_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = real_study(tiny_store, tmp_path, PARTS, cluster="debug")
    assert main(["scale", "run", str(study), f"data.store={tmp_path}"]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_cell_that_diverges_is_told_and_not_run_over_and_over(
    tiny_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = {"p": {"global_batch": 8, "optimizer": "sgd"}}
    huge = {"train.stage1.lr": 1e30, "train.stage1.steps": 9, "checkpoint.every": 1, "train.engine": "ddp"}
    study = real_study(tiny_store, tmp_path, part, cluster="debug", set=huge)
    assert main(["scale", "run", str(study)]) == 1
    capsys.readouterr()
    (cell,) = read_study(study).cells
    assert cell.state == "diverged" and cell.result is None
    assert cell.diverged is not None and "not finite at step" in cell.diverged
    assert main(["scale", "plan", str(study)]) == 0
    assert f"diverged: {cell.name}: {cell.diverged}" in capsys.readouterr().out
    assert main(["scale", "run", str(study)]) == 0
    printed = capsys.readouterr().out
    assert "left as they are: 1 cells that diverged" in printed and "nothing to run" in printed
    assert main(["scale", "run", str(study), "--again", "--dry-run"]) == 0
    assert "would run: 1 cells" in capsys.readouterr().out
