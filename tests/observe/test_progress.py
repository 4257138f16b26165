"""The progress line rewrites itself in a terminal, speaks now and then in a log, and is honest about the time left."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import select
import struct
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from mmsada_hpc.observe.progress import Progress
from mmsada_hpc.observe.screen import Screen
from mmsada_hpc.observe.wording import duration

ROW = {
    "loss": 1.2345,
    "loss_ce": 0.9,
    "loss_corr": 0.5,
    "loss_domain_rgb": 0.69,
    "loss_domain_flow": 0.7,
    "clips_per_s": 37.1,
    "step_s": 1.0,
    "data_wait_s": 0.02,
}
WHOLE = (
    "stage 2/2  step 120/400  loss 1.234 (ce 0.900 corr 0.500 dom-rgb 0.690 dom-flow 0.700)"
    "  37.1 clips/s  wait 2%  eta 4:40"
)


class Clock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal:
    """A pseudo-terminal of a given width; `written()` is all that was sent to it."""

    def __init__(self, columns: int) -> None:
        self._read, slave = pty.openpty()
        self.out: TextIO = open(slave, "w", encoding="utf-8")  # noqa: SIM115 (closed by close)
        self.resize(columns)

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self.out.fileno(), termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def written(self) -> str:
        chunks = []
        while select.select([self._read], [], [], 0.05)[0]:
            chunks.append(os.read(self._read, 1 << 16))
        return b"".join(chunks).decode()

    def close(self) -> None:
        self.out.close()
        os.close(self._read)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv("TERM", "xterm")
    opened = Terminal(120)
    yield opened
    opened.close()


def _shown(written: str) -> list[str]:
    """What stands on the terminal after `written`: a carriage return with "clear line" empties the line."""
    return [line.rsplit("\r\x1b[K", 1)[-1].rstrip("\r") for line in written.split("\n")]


def _advance(progress: Progress, clock: Clock, *, first: int, last: int, seconds: float) -> None:
    for step in range(first, last + 1):
        clock.now += seconds
        progress.update(step, ROW)


def test_the_line_has_step_losses_speed_wait_and_time_left() -> None:
    clock = Clock()
    progress = Progress(Screen(io.StringIO()), 400, "stage 2/2", clock=clock)
    _advance(progress, clock, first=1, last=120, seconds=1.0)
    assert progress.line(columns=200) == WHOLE


def test_the_line_fits_any_width_and_drops_the_least_important_first() -> None:
    clock = Clock()
    progress = Progress(Screen(io.StringIO()), 400, "stage 2/2", clock=clock)
    _advance(progress, clock, first=1, last=120, seconds=1.0)
    for columns in range(1, 130):
        line = progress.line(columns=columns)
        assert len(line) < max(columns, 2)
        assert columns < 40 or ("eta 4:40" in line and "step 120/400" in line)


def test_the_time_left_ignores_the_warm_up_and_a_pause_for_an_evaluation() -> None:
    clock = Clock()
    progress = Progress(Screen(io.StringIO()), 100, "stage 1/2", clock=clock)
    clock.now += 500
    progress.update(1, ROW)
    assert "eta -:--" in progress.line(columns=200)
    _advance(progress, clock, first=2, last=20, seconds=2.0)
    clock.now += 300
    _advance(progress, clock, first=21, last=40, seconds=2.0)
    assert "eta 2:00" in progress.line(columns=200)


def test_a_resumed_loop_starts_where_it_was() -> None:
    clock = Clock()
    progress = Progress(Screen(io.StringIO()), 100, "stage 1/2", start=90, clock=clock)
    assert "step 90/100" in progress.line(columns=200)
    _advance(progress, clock, first=91, last=94, seconds=3.0)
    assert "eta 0:18" in progress.line(columns=200)


def test_a_loss_that_is_not_finite_is_shown_as_such() -> None:
    progress = Progress(Screen(io.StringIO()), 10, "stage 1/2")
    progress.update(1, {"loss": float("nan"), "loss_ce": None, "loss_corr": float("inf")})
    assert "loss nan (ce nan corr nan)" in progress.line(columns=200)


def test_in_a_log_whole_lines_come_at_the_start_every_period_and_at_the_end() -> None:
    clock, out = Clock(), io.StringIO()
    with Progress(Screen(out), 100, "stage 1/1", log_seconds=15, clock=clock) as progress:
        _advance(progress, clock, first=1, last=100, seconds=1.0)
    text = out.getvalue()
    assert "\r" not in text
    assert "\x1b" not in text
    assert [line.split("  ")[1] for line in text.splitlines()] == [
        "step 0/100", "step 1/100", *(f"step {step}/100" for step in (16, 31, 46, 61, 76, 91)), "step 100/100"
    ]  # fmt: skip
    assert text.splitlines()[-1].endswith("done")


def test_a_short_inner_loop_leaves_no_trace_in_a_log() -> None:
    clock, out = Clock(), io.StringIO()
    with Progress(Screen(out), 5, "evaluate", keep=False, clock=clock) as progress:
        _advance(progress, clock, first=1, last=5, seconds=1.0)
    assert out.getvalue() == ""


def test_in_a_terminal_one_line_is_rewritten_and_the_last_stays(terminal: Terminal) -> None:
    clock = Clock()
    with Progress(Screen(terminal.out), 40, "stage 1/1", clock=clock) as progress:
        _advance(progress, clock, first=1, last=40, seconds=1.0)
    first, after = _shown(terminal.written())
    assert first.startswith("stage 1/1  step 40/40  loss 1.234 (ce")
    assert first.endswith("done")
    assert after == ""


def test_a_message_stands_above_the_live_line(terminal: Terminal) -> None:
    clock = Clock()
    progress = Progress(Screen(terminal.out), 40, "stage 1/1", clock=clock)
    _advance(progress, clock, first=1, last=3, seconds=1.0)
    progress.message("target/test 61.1 %")
    assert _shown(terminal.written())[0] == "target/test 61.1 %"
    _advance(progress, clock, first=4, last=5, seconds=1.0)
    assert _shown(terminal.written())[-1].startswith("stage 1/1  step 5/40")


def test_an_inner_loop_takes_the_line_and_gives_it_back(terminal: Terminal) -> None:
    clock, screen = Clock(), Screen(terminal.out)
    outer = Progress(screen, 40, "stage 1/1", clock=clock)
    with Progress(screen, 5, "evaluate", keep=False, clock=clock) as inner:
        _advance(inner, clock, first=1, last=5, seconds=1.0)
    assert _shown(terminal.written()) == [""]
    _advance(outer, clock, first=1, last=1, seconds=1.0)
    assert _shown(terminal.written())[-1].startswith("stage 1/1  step 1/40")


def test_a_resized_terminal_is_noticed(terminal: Terminal) -> None:
    clock = Clock()
    progress = Progress(Screen(terminal.out), 40, "stage 1/1", clock=clock)
    _advance(progress, clock, first=1, last=2, seconds=1.0)
    terminal.written()
    terminal.resize(44)
    _advance(progress, clock, first=3, last=3, seconds=1.0)
    assert len(_shown(terminal.written())[-1]) < 44


def test_a_terminal_that_cannot_rewrite_lines_is_treated_as_a_log(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert not Screen(terminal.out).is_tty


def test_other_ranks_show_nothing(tmp_path: Path) -> None:
    out = io.StringIO()
    with Progress(Screen(out, visible=False), 2, "stage 1/1") as progress:
        progress.update(1, ROW)
        progress.message("hello")
    assert out.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (42.4, "0:42"), (192, "3:12"), (3725, "1:02:05"), (184_200, "2d 03:10")]
)
def test_durations_read_like_a_clock(seconds: float, text: str) -> None:
    assert duration(seconds) == text
