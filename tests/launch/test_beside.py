"""Commands beside each other on this host: how many at once, what each gets, and that none outlives the grid."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmsada_hpc.cluster.beside import Command, Ended, run_beside, share_of

CHECKOUT = Path(__file__).resolve().parents[2]


def python(name: str, text: str, folder: Path) -> Command:
    return Command(name, [sys.executable, "-c", text], folder / f"{name}.log")


def run(commands: list[Command], *, parallel: int) -> tuple[list[str], list[Ended]]:
    events: list[str] = []
    ended = run_beside(
        commands,
        parallel=parallel,
        on_start=lambda command: events.append(f"+{command.name}"),
        on_end=lambda end: events.append(f"-{end.name}"),
    )
    return events, ended


def most_at_once(events: list[str]) -> int:
    counts = [sum(1 if event[0] == "+" else -1 for event in events[: i + 1]) for i in range(len(events))]
    return max(counts)


def test_no_more_than_asked_for_run_at_once_and_all_run(tmp_path: Path) -> None:
    events, ended = run([python(name, "import time; time.sleep(0.3)", tmp_path) for name in "abcde"], parallel=2)
    assert most_at_once(events) == 2
    assert sorted(end.name for end in ended) == list("abcde")
    assert all(end.code == 0 for end in ended)


def test_a_failure_is_told_and_does_not_stop_the_others(tmp_path: Path) -> None:
    commands = [python("bad", "print('why'); raise SystemExit(3)", tmp_path), python("good", "print(1)", tmp_path)]
    _, ended = run(commands, parallel=1)
    assert {end.name: end.code for end in ended} == {"bad": 3, "good": 0}
    assert (tmp_path / "bad.log").read_text() == "why\n"


def test_each_gets_its_share_of_the_cores(tmp_path: Path) -> None:
    text = "import os; print(os.environ['OMP_NUM_THREADS'])"
    before = os.environ.pop("OMP_NUM_THREADS", None)
    try:
        run([python("one", text, tmp_path)], parallel=10_000)
    finally:
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before
    assert (tmp_path / "one.log").read_text() == "1\n"


def test_the_ranks_of_a_command_share_its_cores_and_gpus_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("mmsada_hpc.cluster.beside.cores", lambda: 32)
    assert share_of(0, parallel=2, ranks=4, gpus=[]) == {"OMP_NUM_THREADS": "4"}
    assert [share_of(i, parallel=2, ranks=2, gpus=[0, 1, 2, 3])["CUDA_VISIBLE_DEVICES"] for i in (0, 1)] == [
        "0,1",
        "2,3",
    ]
    fewer = [share_of(i, parallel=3, ranks=1, gpus=[4, 5])["CUDA_VISIBLE_DEVICES"] for i in range(3)]
    assert fewer == ["4", "5", "4"]
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert share_of(0, parallel=2, ranks=4, gpus=[]) == {}, "what a person has set wins"


def test_told_to_stop_it_tells_its_commands_and_waits_for_them(tmp_path: Path) -> None:
    """A child that saves on SIGTERM is given the time to do so, and is gone afterwards."""
    child = (
        "import pathlib, signal, sys, time\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "def save(*_):\n"
        "    time.sleep(0.5)\n"
        "    (folder / 'saved').touch()\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "(folder / 'ready').touch()\n"
        "time.sleep(60)\n"
    )
    (tmp_path / "child.py").write_text(child)
    parent = (
        "import sys, pathlib\n"
        "from mmsada_hpc.cluster.beside import Command, run_beside\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "command = Command('child', [sys.executable, str(folder / 'child.py')], folder / 'log')\n"
        "run_beside([command], parallel=1, on_start=lambda c: None, on_end=lambda e: None)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=CHECKOUT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert (tmp_path / "saved").exists()
    assert "KeyboardInterrupt" in err
