"""`mmsada cancel` where there is no cluster; on one it is in tests/cluster/test_jobs.py."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmsada_hpc.cli import main
from tests.jobs.fake import FakeRun

RANK = """
import os, signal, sys, time
file = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
os.dup2(file, 1), os.dup2(file, 2)
def save(*_):
    time.sleep(0.5)
    os.mkdir(sys.argv[2])
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
open(sys.argv[1] + ".ready", "w").close()
time.sleep(60)
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRun:
    monkeypatch.setenv("PATH", "/nowhere")  # no Slurm
    return FakeRun(tmp_path / "run")


def test_where_nothing_runs_nothing_is_left_behind(run: FakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run.start("local-aa").beat("local-aa", 0, "end").result()
    assert main(["cancel", str(run.path)]) == 0
    assert "nothing to cancel" in capsys.readouterr().out
    assert not (run.path / "cancelled").exists()


def test_a_silent_slurm_is_told_and_the_run_will_not_requeue_itself(
    run: FakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run.job("12")
    assert main(["cancel", str(run.path)]) == 1
    assert "once Slurm answers, `scancel 12`" in capsys.readouterr().err
    assert (run.path / "cancelled").exists()


def test_a_local_run_is_told_to_save_and_its_checkpoint_is_named(
    run: FakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run.checkpoint(1, 20).start("local-aa", ranks=1)
    log, saved = run.path / "run.log", run.path / "checkpoints" / "stage1-step00000047"
    process = subprocess.Popen([sys.executable, "-c", RANK, log, saved])
    while not log.with_name("run.log.ready").exists():
        time.sleep(0.02)
    run.beat("local-aa", 0, "step", host=socket.gethostname(), pid=process.pid)
    try:
        assert main(["cancel", str(run.path), "--wait", "20"]) == 0
        assert process.poll() == 0 or process.wait(1) == 0
    finally:
        process.kill()
        process.wait()
    said = capsys.readouterr().out
    assert f"told rank 0 (process {process.pid}) on this host to save and stop" in said
    assert "gone; saved at step 47 of stage 1" in said
    assert not (run.path / "cancelled").exists()


def test_a_process_that_is_not_of_the_run_is_left_alone(run: FakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        run.start("local-aa", ranks=1).beat("local-aa", 0, "step", host=socket.gethostname(), pid=bystander.pid)
        assert main(["cancel", str(run.path)]) == 0
        assert "nothing to cancel" in capsys.readouterr().out
        time.sleep(0.2)
        assert bystander.poll() is None
    finally:
        bystander.send_signal(signal.SIGKILL)
        bystander.wait()


def test_ranks_of_another_host_are_named(run: FakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run.start("local-aa").beat("local-aa", 0, "step", host="elsewhere")
    assert main(["cancel", str(run.path)]) == 1
    assert "runs on elsewhere, outside Slurm; cancel it there" in capsys.readouterr().err
