"""Libraries write to run.log, a person reads the screen, and both are put back whatever happens."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmsada_hpc.errors import UserError
from mmsada_hpc.observe.screen import log_path, quiet_screen

NOISE = """
import logging, os, subprocess, sys, warnings
from mmsada_hpc.observe.screen import quiet_screen
early = logging.StreamHandler(sys.stderr)
with quiet_screen({run!r}, {rank}) as screen:
    print("python out")
    print("python err", file=sys.stderr)
    os.write(1, b"descriptor out\\n")
    os.write(2, b"descriptor err\\n")
    subprocess.run(["sh", "-c", "echo child out; echo child err >&2"])
    logging.warning("log line")
    early.emit(logging.makeLogRecord(dict(msg="early handler")))
    warnings.warn("warning line")
    screen.print("for a person")
    {extra}
print("after out")
print("after err", file=sys.stderr)
"""
NOISES = ("python out", "python err", "descriptor out", "descriptor err", "child out", "child err")
LOGGED = (*NOISES, "log line", "early handler", "warning line")


def _run(run: Path, *, rank: int = 0, extra: str = "pass") -> subprocess.CompletedProcess[str]:
    code = NOISE.format(run=str(run), rank=rank, extra=extra)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def test_noise_of_python_c_and_children_lands_in_the_log_and_only_our_lines_on_the_screen(tmp_path: Path) -> None:
    done = _run(tmp_path)
    assert (done.stdout, done.stderr) == ("for a person\nafter out\n", "after err\n")
    lines = (tmp_path / "run.log").read_text()
    assert all(noise in lines for noise in LOGGED)
    assert (
        lines.index("python out") < lines.index("descriptor out") < lines.index("child out") < lines.index("log line")
    )


def test_other_ranks_have_a_log_of_their_own_and_no_screen(tmp_path: Path) -> None:
    done = _run(tmp_path, rank=3)
    assert done.stdout == "after out\n"
    assert all(noise in (tmp_path / "run.rank3.log").read_text() for noise in LOGGED)
    assert not (tmp_path / "run.log").exists()


def test_after_an_error_the_screen_is_back_and_the_log_has_the_traceback(tmp_path: Path) -> None:
    done = _run(tmp_path, extra="raise RuntimeError('boom')")
    assert done.stdout == "for a person\n"
    assert "RuntimeError: boom" in done.stderr
    assert "RuntimeError: boom" in (tmp_path / "run.log").read_text()


def test_the_log_is_appended_to(tmp_path: Path) -> None:
    _run(tmp_path)
    _run(tmp_path)
    assert (tmp_path / "run.log").read_text().count("python out") == 2


def test_a_reader_that_leaves_does_not_end_the_run(tmp_path: Path) -> None:
    loop = "[screen.print(str(i)) for i in range(20000)]; print('reached the end'); os._exit(0)"
    code = NOISE.format(run=str(tmp_path), rank=0, extra=loop)
    left = subprocess.run(["sh", "-c", '"$0" -c "$1" | head -1', sys.executable, code], capture_output=True, text=True)
    assert left.stdout == "for a person\n"
    log = (tmp_path / "run.log").read_text()
    assert "reached the end" in log
    assert log.count("the screen is gone") == 1


def test_a_nested_screen_reaches_the_real_screen_and_logs_to_its_own_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with quiet_screen(tmp_path / "outer", 0) as outer:
        with quiet_screen(tmp_path / "inner", 0) as inner:
            print("inner noise")
            inner.print("from inside")
        print("outer noise")
        outer.print("from outside")
    print("free")
    assert capfd.readouterr().out == "from inside\nfrom outside\nfree\n"
    assert (tmp_path / "inner/run.log").read_text() == "inner noise\n"
    assert (tmp_path / "outer/run.log").read_text() == "outer noise\n"


def test_it_can_be_used_again_and_leaks_no_descriptors(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with quiet_screen(tmp_path, 0), quiet_screen(tmp_path, 1):
            print("noise")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/run\.log: cannot write"), quiet_screen(tmp_path / "file", 0):
        pass


def test_log_names_carry_the_rank_from_rank_one_on() -> None:
    assert [log_path("r", rank).name for rank in (0, 1, 12)] == ["run.log", "run.rank1.log", "run.rank12.log"]
