"""Bounded commands, and the processes of a network namespace."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

COMMAND_S = 20.0


class ClusterError(RuntimeError):
    """Something on the test cluster failed or did not come in time; says what, with the output."""


def run(
    command: Sequence[str | Path],
    *,
    timeout: float = COMMAND_S,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> str:
    """Standard output of a command that is ended, with its children, after `timeout` seconds.

    Raises:
        ClusterError: an error code or no end in time; holds what it printed.
    """
    words = [str(word) for word in command]
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        cwd=cwd,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        out, err = process.communicate(timeout=COMMAND_S)
        raise ClusterError(f"no end within {timeout:g} s: {' '.join(words)}\n{out}{err}") from None
    if process.returncode:
        raise ClusterError(f"exit code {process.returncode}: {' '.join(words)}\n{out}{err}")
    return out


def start(command: Sequence[str | Path], *, log: Path, cwd: Path = Path("/")) -> int:
    """Start a process that outlives this one, its output appended to `log`; returns its id."""
    with open(log, "ab") as output:
        return subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd=cwd,
        ).pid


def wait_until(condition: Callable[[], bool], *, timeout: float, what: str, every: float = 0.05) -> None:
    """Raises:
    ClusterError: the condition did not come true within `timeout` seconds.
    """
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise ClusterError(f"not within {timeout:g} s: {what}")
        time.sleep(every)


def command_name(pid: int) -> str:
    """The kernel's name of a process (15 characters); empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def start_time(pid: int) -> str:
    """With the id, this tells a process from a later one of the same id; empty when it has ended."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if state in "ZX" else rest[18]


def end_processes(find: Callable[[], Iterable[int]], *, what: str) -> None:
    """Kill what `find` gives until it gives nothing: a process may fork while it is being ended."""

    def none_left() -> bool:
        pids = list(find())
        for pid in pids:
            kill(pid)
        return not pids

    wait_until(none_left, timeout=COMMAND_S, what=f"the end of the processes of {what}")


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """A process that has ended already is no error."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
