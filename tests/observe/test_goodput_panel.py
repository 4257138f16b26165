"""The report tells where a run's time went and which rank the others wait for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmsada_hpc.observe.goodput import read_goodput
from mmsada_hpc.observe.goodput_panel import goodput_panels
from mmsada_hpc.observe.goodput_rows import StartRow, append_row
from mmsada_hpc.observe.report import write_report
from tests.observe.fake_run import write_run
from tests.observe.test_report import Page

HOSTS = ("gpu-a-017", "gpu-a-017", "gpu-b-003", "gpu-b-003")


def write_ledger(folder: Path, *, slow: float = 1.0) -> None:
    """Three starts: killed, stopped before its time limit, finished. `slow` is what rank 3 takes to another's 1."""
    own = (0.41, 0.42, 0.4, 0.41 * slow)
    ranks: dict[str, Any] = {"ranks": 4, "own_s": own, "recent_s": own, "hosts": HOSTS}
    begun = 1.79e9
    rows = [
        StartRow(
            start="4711.0-1a", begun=begun, seen=begun + 3000, steps=2000, useful_s=2300, data_wait_s=210,
            evaluate_s=200, checkpoint_s=60, start_s=180, **ranks,
        ),
        StartRow(
            start="4711.1-2b", begun=begun + 4200, seen=begun + 7800, ended="stopped", steps=2900, useful_s=2900,
            data_wait_s=120, evaluate_s=280, checkpoint_s=80, start_s=150, lost_steps=340, lost_s=420,
            lost_data_wait_s=30, **ranks,
        ),
        StartRow(
            start="4802.0-3c", begun=begun + 8100, seen=begun + 10000, ended="finished", steps=1300, useful_s=1300,
            data_wait_s=60, evaluate_s=320, checkpoint_s=40, start_s=160, **ranks,
        ),
    ]  # fmt: skip
    for row in rows:
        append_row(folder, row)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = write_run(tmp_path_factory.mktemp("run") / "mmsada-s0", stages=(4, 6), features=False)
    write_ledger(folder, slow=1.6)
    return Page(write_report([folder]))


@pytest.mark.parametrize(
    "piece",
    [
        "Where the time went", "Time over all starts", "Ranks: who the others wait for", "useful steps", "restart",
        "lost work", "61.1 % goodput: time in updates that count", "hours since the first begin",
        "3 starts; 25:00 passed between them. 340 updates had to run again (7:00 of work).",
        "Rank 3 on gpu-b-003 is slow: 1.58 times the median (0.656 s an update against 0.415 s), so every update takes "
        "about 0.24 s longer on all 4 ranks.",
        "start 1 (killed), lost work: 7:00", "start 2 (stopped), useful steps: 48:20", "start 3 (finished)",
        "before start 2: 20:00 without a process", "in all 2:46:40 100.0 %", "useful steps 1:41:50 61.1 %",
        "Updates that no checkpoint held when a start ended, so they ran again.", "Every start (3)", "4802.0-3c",
    ],
)  # fmt: skip
def test_the_page_says(page: Page, piece: str) -> None:
    assert piece in page.words


def test_the_drawing_is_as_wide_as_the_time(page: Page) -> None:
    bars = [line.split('"') for line in page.source.split("<rect ")[1:] if 'y="18.0" width' in line.split("style")[0]]
    assert sum(float(bar[5]) for bar in bars) == pytest.approx(400, abs=0.1)
    assert float(bars[-1][1]) + float(bars[-1][5]) == pytest.approx(400, abs=0.1)


def test_ranks_that_keep_up_are_not_called_slow(tmp_path: Path) -> None:
    write_ledger(tmp_path)
    words = goodput_panels(read_goodput(tmp_path))
    assert "No rank is slow: the slowest, rank 1 on gpu-a-017, needs 1.02 times the median" in words


def test_of_many_ranks_the_slowest_are_shown(tmp_path: Path) -> None:
    own = tuple(1 + rank / 1000 for rank in range(64))
    ranks: dict[str, Any] = {
        "ranks": 64,
        "own_s": own,
        "recent_s": own,
        "hosts": tuple(f"n{rank // 8}" for rank in range(64)),
    }
    append_row(tmp_path, StartRow(start="1", begun=0, seen=80, steps=64, useful_s=70, ended="finished", **ranks))
    words = goodput_panels(read_goodput(tmp_path))
    assert "The 16 slowest of 64 ranks are shown." in words
    assert "rank 63 · n7" in words
    assert "rank 47 · n5" not in words
    assert "One start, never interrupted." in words


def test_one_rank_waits_for_nobody(tmp_path: Path) -> None:
    ranks: dict[str, Any] = {"own_s": (1.0,), "recent_s": (1.0,), "hosts": ("a",)}
    append_row(tmp_path, StartRow(start="1", begun=0, seen=80, steps=64, useful_s=70, **ranks))
    words = goodput_panels(read_goodput(tmp_path))
    assert "Ranks" not in words
    assert "One start so far." in words


def test_a_host_name_is_text(tmp_path: Path) -> None:
    ranks: dict[str, Any] = {"own_s": (1.0, 2.0), "recent_s": (1.0, 2.0), "hosts": ("a", "<b>")}
    append_row(tmp_path, StartRow(start="<i>", begun=0, seen=80, steps=64, useful_s=70, **ranks))
    assert "<b>" not in goodput_panels(read_goodput(tmp_path))


def test_runs_without_a_ledger_have_no_such_panel_and_those_with_one_a_column(tmp_path: Path) -> None:
    old, new = (write_run(tmp_path / name, stages=(2, 2), features=False) for name in ("old", "new"))
    assert "Where the time went" not in Page(write_report([old])).words
    assert "goodput" not in Page(write_report([old, new])).words
    write_ledger(new)
    words = Page(write_report([old, new])).words
    assert "time goodput %" in words
    assert words.count("Where the time went") == 1
