"""Runs the checks of this host in a process of their own: one that hangs or crashes is ended, told, and passed over."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict
from typing import IO, Any

from mmsada_hpc.doctor.report import Ask, Line

CHECKS = ("network", "host", "versions", "gpu", "compute", "codecs", "mpi", "folder", "slurm")
"""Modules of this package with `check(ask) -> list[Line]`, in the order in which they are shown."""
_START_S = 30.0


def run_checks(names: Sequence[str], ask: Ask) -> list[Line]:
    """The lines of every named check; each has `ask.patience_s` seconds."""
    lines: list[Line] = []
    waiting = list(names)
    while waiting:
        lines += _run_some(waiting, ask)
    return lines


def _run_some(waiting: list[str], ask: Ask) -> list[Line]:
    """Run checks in one process until all are done or one takes it down; takes what was run off `waiting`."""
    lines: list[Line] = []
    with tempfile.TemporaryFile() as errors:
        child = _start(waiting, ask, errors)
        try:
            messages = _listen(child)
            while waiting:
                answer = _next(messages, ask.patience_s + _START_S * (not lines))
                if not isinstance(answer, dict):
                    lines.append(_lost(waiting[0], answer, child, ask, _tail(errors)))
                else:
                    lines += [Line.from_json(line) for line in answer["lines"]]
                del waiting[0]
                if not isinstance(answer, dict):
                    break
        finally:
            _end(child)
    return lines


def _start(names: Sequence[str], ask: Ask, errors: IO[bytes]) -> "subprocess.Popen[bytes]":
    child = subprocess.Popen(
        [sys.executable, "-m", "mmsada_hpc.doctor.child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        start_new_session=True,
    )
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it failed to start, which is seen when nothing comes
        child.stdin.write(json.dumps({"checks": list(names), "ask": asdict(ask)}).encode())
        child.stdin.close()
    return child


def _listen(child: "subprocess.Popen[bytes]") -> "queue.Queue[dict[str, Any] | None]":
    """Answers as they come; None at the end."""
    messages: queue.Queue[dict[str, Any] | None] = queue.Queue()

    def read() -> None:
        assert child.stdout is not None
        for line in child.stdout:
            messages.put(json.loads(line))
        messages.put(None)

    threading.Thread(target=read, daemon=True).start()
    return messages


def _next(messages: "queue.Queue[dict[str, Any] | None]", patience_s: float) -> dict[str, Any] | str | None:
    """An answer, None when the process has ended, or "late"."""
    try:
        return messages.get(timeout=patience_s)
    except queue.Empty:
        return "late"


def _lost(name: str, answer: object, child: "subprocess.Popen[bytes]", ask: Ask, tail: str) -> Line:
    if answer == "late":
        return Line(
            name,
            "fail",
            f"no answer within {ask.patience_s:.0f} s, so it was ended",
            "a file system or network that hangs? --patience gives it longer, --skip leaves it out",
        )
    code = child.wait(timeout=_START_S)
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    hint = "out of memory, or killed by somebody?" if code == -signal.SIGKILL else "a broken library, or another CPU?"
    return Line(name, "fail", f"the check {how}{f' ({tail})' if tail else ''}", f"{hint} Install again on this host")


def _tail(errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = errors.read().decode(errors="replace").split("\n")
    return next((" ".join(line.split()) for line in reversed(lines) if line.strip()), "")[:200]


def _end(child: "subprocess.Popen[bytes]") -> None:
    """End it and all it started (mpiexec); it has nothing to save."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait(timeout=_START_S)
