"""`mmsada logs` on run folders without a cluster; following a real job is in tests/cluster/test_jobs.py."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mmsada_hpc.cli import main
from tests.jobs.fake import FakeRun

OUT = "submitit INFO (2026-01-01) - Starting\nmmsada, K1 -> K2\nstage 1/2  step 1/100\nstage 1/2  step 9/100\n"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRun:
    monkeypatch.setenv("PATH", "/nowhere")  # no Slurm
    return FakeRun(tmp_path / "run")


def said(capsys: pytest.CaptureFixture[str], *words: str | Path, code: int = 0) -> str:
    assert main(["logs", *map(str, words)]) == code
    out, err = capsys.readouterr()
    return err if code == 2 else out


def test_the_output_of_rank_0_comes_without_submitits_lines(run: FakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run.job("12", out=OUT, err="submitit WARNING (x) - y\nsrun: z\n")
    assert said(capsys, run.path) == OUT.partition("\n")[2]
    assert said(capsys, run.path, "-n", "1") == "stage 1/2  step 9/100\n"
    assert said(capsys, run.path, "--err") == "srun: z\n"


def test_of_several_jobs_the_newest_that_printed_is_shown(run: FakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run.job("12", out="one\n").job("13", out="two\n").job("14")
    assert said(capsys, run.path) == "two\n"


def test_another_rank_has_a_log_of_its_own(run: FakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run.job("12", out=OUT)
    (run.path / "run.rank1.log").write_text("one library's words\n")
    (run.path / "submitit" / "12_1_log.err").write_text("its errors\n")
    assert said(capsys, run.path, "--rank", "1") == "one library's words\n"
    assert said(capsys, run.path, "--rank", "1", "--err") == "its errors\n"
    assert "--rank 2" in said(capsys, run.path, "--rank", "2", code=2)


def test_a_run_that_has_printed_nothing_says_so(run: FakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run.job("12")
    assert main(["logs", str(run.path)]) == 0
    assert "has printed nothing yet" in capsys.readouterr().err


def test_a_local_run_shows_what_submitit_kept_or_its_log(run: FakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run.start("local-aa", ranks=1, ago=10)
    (run.path / "run.log").write_text("a library\n")
    assert said(capsys, run.path) == "a library\n"
    (run.path / "submitit").mkdir()
    (run.path / "submitit" / "4711_0_log.out").write_text("stage 1/2  step 1/100\n")
    assert said(capsys, run.path) == "stage 1/2  step 1/100\n"


def test_all_of_a_long_log_is_there_when_asked_for(run: FakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run.job("12", out="".join(f"line {n}\n" for n in range(30_000)))
    assert said(capsys, run.path, "-n", "0").count("\n") == 30_000
    assert said(capsys, run.path).count("\n") == 30


def test_a_folder_of_runs_is_no_run(run: FakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run.job("1")
    FakeRun(run.path.parent / "second").job("2")
    assert "is a folder of runs, give one of its 2: " in said(capsys, run.path.parent, code=2)


@pytest.mark.parametrize(("finish", "code"), [(FakeRun.result, 0), (FakeRun.cancelled, 1)])
def test_following_ends_with_the_run_and_its_code_says_how(
    run: FakeRun, capsys: pytest.CaptureFixture[str], finish: Callable[[FakeRun], FakeRun], code: int
) -> None:
    run.start("local-aa", ranks=1, ago=60).beat("local-aa", 0, "step", host="elsewhere")
    (run.path / "submitit").mkdir()
    output = run.path / "submitit" / "4711_0_log.out"
    output.write_text("stage 1/2  step 1/100\n")

    def go_on() -> None:
        time.sleep(0.5)
        with output.open("a") as file:
            file.write("stage 1/2  step 2/100\nstage 1/2  st")
            file.flush()
            time.sleep(1)
            file.write("ep 3/100\n")
        run.beat("local-aa", 0, "end", host="elsewhere")
        finish(run)

    thread = threading.Thread(target=go_on)
    thread.start()
    printed = said(capsys, "-f", run.path, code=code)
    thread.join()
    assert printed.splitlines()[:3] == [f"stage 1/2  step {n}/100" for n in (1, 2, 3)]
    assert printed.splitlines()[3].startswith(f"-- {run.path} is {'finished' if code == 0 else 'cancelled'}")


def test_ctrl_c_ends_following_with_130(run: FakeRun) -> None:
    run.start("local-aa", ranks=1).beat("local-aa", 0, "step", host="elsewhere")
    (run.path / "run.log").write_text("a line\n")
    words = [sys.executable, "-m", "mmsada_hpc.cli", "logs", "-f", str(run.path)]
    ask = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a shell's & ignores it
    code = f"{ask}; from mmsada_hpc.cli import main; sys.exit(main({words[3:]!r}))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "a line\n"
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(10) == 130
