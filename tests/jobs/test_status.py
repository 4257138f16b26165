"""The table of runs and the longer view, from fabricated run folders through the command line."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from mmsada_hpc.cli import main
from tests.jobs.fake import FakeRun

Say = Callable[..., str]


def put_squeue(folder: Path, jobs: Mapping[str, str]) -> None:
    """A `squeue` that says `jobs` (id: `STATE|nodes|reason`) and notes each call in `calls`."""
    lines = "\n".join(f"{job}|{rest}" for job, rest in jobs.items())
    path = folder / "squeue"
    path.write_text(f'#!/usr/bin/env bash\necho "$@" >> {folder}/calls\ncat <<"END"\n{lines}\nEND\n')
    path.chmod(0o755)


def words(line: str) -> list[str]:
    return line.split()


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """`mmsada WORDS` in a folder of its own, on a terminal of so many columns (0 = none); no Slurm but the test's."""
    (tmp_path / "bin").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("bash", "cat"):
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")

    def call(*words: str, columns: int = 0, code: int = 0) -> str:
        monkeypatch.setenv("COLUMNS", str(columns) if columns else "")
        assert main(words) == code
        out, err = capsys.readouterr()
        return err if code == 2 else out

    return call


@pytest.fixture
def runs(tmp_path: Path, say: Say) -> Path:
    """Five runs: one runs, slow on rank 1 and after a restart; others wait, failed, finished, stopped."""
    top, now = tmp_path / "runs", time.time()
    running = FakeRun(top / "toy" / "mmsada").job("41").start("41.0-aa", ago=700).start("41.1-bb", ago=300)
    running.steps(160, evaluated=(50, 150)).checkpoint(1, 100).checkpoint(2, 25)
    running.beat("41.1-bb", 0, "agree").beat("41.1-bb", 1, "step")
    own = {"ranks": 2, "hosts": ("mn1", "mn2"), "recent_s": (0.5, 1.0)}
    running.account(start="41.0", begun=now - 700, seen=now - 400, useful_s=250.0, ended="stopped")
    running.account(start="41.1", begun=now - 300, seen=now - 200, lost_s=5.0, lost_steps=4)
    running.account(start="41.1", begun=now - 300, seen=now - 1, useful_s=200.0, lost_s=20.0, lost_steps=9, **own)
    FakeRun(top / "toy" / "mcd").job("42")
    failed = FakeRun(top / "toy" / "mmd").job("43").start("43.0-aa").steps(7)
    failed.beat("43.0-aa", 0, "failed", why="loss not finite at step 8 of stage 1; no update was made")
    FakeRun(top / "done").start("local-aa").steps(400).result()
    FakeRun(top / "old").start("").steps(20)
    put_squeue(tmp_path / "bin", {"41": "RUNNING|mn[1-2]|None", "42": "PENDING||Priority", "43": "FAILED||NonZero"})
    return top


def test_the_table_shows_every_run_and_slurm_is_asked_once(runs: Path, say: Say, tmp_path: Path) -> None:
    lines = [words(line) for line in say("status").splitlines()]
    assert lines[0] == words("run state stage: step clips/s top-1 % left job where restarts lost slowest rank")
    assert lines[1] == words("done finished 2: 300/300 30.0 61.2 - - - - - -")
    assert lines[2] == words("old stopped 1: 20/100 32.0 - - - - - - -")
    assert lines[3] == words("toy/mcd waiting 1: 0/100 - - - 42 - - - - Priority")
    assert lines[4][:7] == words("toy/mmd failed 1: 7/100 32.0 - -")
    assert lines[5] == words("toy/mmsada running 2: 60/300 32.0 55.0 8:00 41 mn1 mn2 1 2:00 rank 1 mn2 1.3x")
    assert lines[-1] == words("5 runs: 1 running, 1 waiting, 1 finished, 1 stopped, 1 failed")
    calls = (tmp_path / "bin" / "calls").read_text().splitlines()
    assert len(calls) == 1 and "--jobs=41,42,43" in calls[0]


@pytest.mark.parametrize("columns", [60, 80, 100, 130, 160, 220])
def test_the_table_fits_the_terminal_and_keeps_what_matters_most(runs: Path, say: Say, columns: int) -> None:
    text = say("status", columns=columns)
    assert max(map(len, text.splitlines())) <= columns
    for word in ("running", "waiting", "failed", "Priority", "60/300", "loss not finite"):
        assert word in text
    assert ("slowest" in text) == (columns >= 130)


def test_a_long_name_loses_its_front(runs: Path, say: Say) -> None:
    name = "a_folder_of_runs_with_a_very_long_name/and_one_more_inside_of_it/the_run"
    FakeRun(runs / name).start("local-aa").steps(400).result()
    text = say("status", columns=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" in text and "more_inside_of_it/the_run" in text


def test_a_filter_shows_the_states_that_were_asked_for(runs: Path, say: Say) -> None:
    text = say("status", "--state", "failed,running")
    assert [line.split()[0] for line in text.splitlines()[1:3]] == ["toy/mmd", "toy/mmsada"]
    assert text.splitlines()[-1] == "2 runs: 1 running, 1 failed"
    assert say("status", "--state", "stale").startswith("no run is stale; 5 runs: ")
    assert "--state brilliant: no such state; choose from running," in say("status", "--state", "brilliant", code=2)


def test_json_has_the_same(runs: Path, say: Say) -> None:
    rows = {row["run"]: row for row in json.loads(say("status", "--json"))}
    assert set(rows) == {"done", "old", "toy/mcd", "toy/mmd", "toy/mmsada"}
    ours = rows["toy/mmsada"]
    assert (ours["state"], ours["restarts"], ours["hosts"], ours["eta_s"]) == ("running", 1, ["mn1", "mn2"], 480.0)
    assert ours["lost_s"] == pytest.approx(120, abs=1)
    assert ours["slowest"]["rank"] == 1
    assert [row["run"] for row in json.loads(say("status", "--json", "--state", "waiting"))] == ["toy/mcd"]


def test_without_slurm_one_line_says_so_and_the_files_are_shown(runs: Path, say: Say, tmp_path: Path) -> None:
    (tmp_path / "bin" / "squeue").unlink()
    text = say("status")
    assert text.splitlines()[-1].startswith("Slurm does not answer (squeue not found")
    assert "toy/mmsada  running" in text and "toy/mcd     unknown" in text
    assert max(map(len, say("status", columns=70).splitlines())) <= 70


def test_one_run_is_shown_at_length(runs: Path, say: Say) -> None:
    text = say("status", "runs/toy/mmsada", columns=100)
    assert max(map(len, text.splitlines())) <= 100
    for part in (
        "mmsada (released), K1 to K2, seed 3",
        "state      running, 8:00 left",
        "where      2 ranks on mn1 mn2",
        "step       60/300 of stage 2, 160/400 in all, 32.0 clips/s",
        "top-1      55.0 % on the target in the last evaluation",
        "jobs       41  RUNNING  2 x 1, 60 min",
        "2  41.1  ",
        "rank 1    mn2",
        "1.33x",
        "saved      step 25 of stage 2",
        "also step 100 of stage 1",
        "next       mmsada logs -f runs/toy/mmsada",
        "mmsada cancel runs/toy/mmsada",
    ):
        assert part in text, part
    assert "mmsada resume runs/toy/mmd" in say("status", "runs/toy/mmd")
    assert "mmsada report runs/done" in say("status", "runs/done")


def test_where_the_time_went_adds_up(runs: Path, say: Say) -> None:
    text = say("status", "runs/toy/mmsada").partition("\ntime ")[2].partition("\n\n")[0]
    shares = dict(re.findall(r"^ {11}(\w[\w ]*?) +[\d:]+ +([\d.]+) %", text, re.MULTILINE))
    assert {"useful", "restart", "lost"} <= set(shares)
    assert sum(map(float, shares.values())) == pytest.approx(100, abs=0.5)


def test_a_run_is_found_by_the_end_of_its_path(runs: Path, say: Say) -> None:
    assert say("status", "mmsada").startswith("runs/toy/mmsada\n")
    assert say("status", "toy/mcd").startswith("runs/toy/mcd\n")
    FakeRun(runs / "more" / "mcd").job("42")
    assert "mcd may be runs/more/mcd, runs/toy/mcd: give more of the path" in say("status", "mcd", code=2)


def test_an_unknown_run_names_the_nearest(runs: Path, say: Say) -> None:
    assert "error: mmsda: no such run; did you mean runs/toy/mmsada" in say("status", "mmsda", code=2)
    assert "did you mean runs/toy/mmsada" in say("status", "runs/toy/msada", code=2)
    assert "there are runs/done, runs/old" in say("status", "zzzzzzzz", code=2)


def test_a_folder_without_runs_says_what_was_looked_for(say: Say, tmp_path: Path) -> None:
    (tmp_path / "empty" / "config.yaml").parent.mkdir()
    (tmp_path / "empty" / "config.yaml").write_text("seed: 1\n")
    assert "with config.yaml and one of jobs.jsonl, metrics.jsonl, run.json" in say("status", "empty", code=2)
    assert "there is no folder runs here" in say("status", code=2)


def test_watch_is_for_a_terminal(runs: Path, say: Say) -> None:
    assert "--watch draws on a terminal" in say("status", "--watch", code=2)


def test_an_evaluation_of_long_ago_is_still_the_last_one(runs: Path, say: Say) -> None:
    run = FakeRun(runs / "long").start("").steps(300, evaluated=(5,))
    with (run.path / "metrics.jsonl").open("a") as file:
        row = {"kind": "train", "stage": 2, "step": 201, "global_step": 301, "clips_per_s": 1.0, "why": "x" * 60}
        file.writelines(json.dumps(row) + "\n" for _ in range(3000))
        file.write('{"kind": "train", "stage": 2, "st')  # torn
    assert words("long stopped 2: 201/300 1.0 40.5") == words(say("status", "runs").splitlines()[2])[:6]


TIMED = """
import sys, time
from mmsada_hpc.cli import main
assert main(["status", "--json"]) == 0
print(time.process_time(), "torch" in sys.modules, file=sys.stderr)
"""


def test_three_hundred_runs_and_a_log_of_many_megabytes_take_about_a_second(tmp_path: Path) -> None:
    first = FakeRun(tmp_path / "runs" / "000").start("12.0-a").start("12.1-b").job("12").steps(400, evaluated=(5,))
    rows = (first.path / "metrics.jsonl").read_bytes()
    (first.path / "metrics.jsonl").write_bytes(rows * 600)
    for step in range(200):
        first.account(start=f"12.{step // 100}", begun=step // 100, seen=step, recent_s=(1.0, 2.0))
    for number in range(1, 300):
        shutil.copytree(first.path, tmp_path / "runs" / f"{number:03}", ignore=shutil.ignore_patterns("metrics.jsonl"))
        (tmp_path / "runs" / f"{number:03}" / "metrics.jsonl").write_bytes(rows)
    env = os.environ | {"PATH": "/nowhere"}
    done = subprocess.run([sys.executable, "-c", TIMED], cwd=tmp_path, env=env, capture_output=True, text=True)
    seconds, has_torch = done.stderr.split()
    assert len(json.loads(done.stdout)) == 300
    assert has_torch == "False"
    assert float(seconds) < 3
