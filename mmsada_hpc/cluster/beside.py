"""Several commands on this host, a few beside each other, each with its share of the cores; told to stop, all stop."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from mmsada_hpc.cluster.host import cores
from mmsada_hpc.cluster.local import terminate_is_interrupt

_POLL_S = 0.2
# A command saves before it ends; past this it is ended.
_SAVE_S = 90.0


@dataclass(frozen=True)
class Command:
    """One of them; what it prints goes to `log`."""

    name: str
    words: Sequence[str]
    log: Path


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    name: str
    code: int
    seconds: float


@dataclass
class _Running:
    command: Command
    process: "subprocess.Popen[bytes]"
    log: IO[bytes]
    begin: float = field(default_factory=time.monotonic)


def run_beside(
    commands: Sequence[Command], *, parallel: int, on_start: Callable[[Command], None], on_end: Callable[[Ended], None]
) -> list[Ended]:
    """Run every command, `parallel` at a time, each on its share of the cores.

    A command that fails does not stop the others.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM; the commands were told to stop and have ended.
    """
    waiting, running, ended = list(commands), list[_Running](), list[Ended]()
    with terminate_is_interrupt():
        try:
            while waiting or running:
                while waiting and len(running) < parallel:
                    on_start(waiting[0])
                    running.append(_start(waiting.pop(0), parallel))
                for one in [r for r in running if r.process.poll() is not None]:
                    running.remove(one)
                    ended.append(_ended(one))
                    on_end(ended[-1])
                time.sleep(_POLL_S)
        finally:
            _stop(running)
    return ended


def _start(command: Command, parallel: int) -> _Running:
    command.log.parent.mkdir(parents=True, exist_ok=True)
    log = command.log.open("wb")
    # A session of its own: Ctrl-C reaches this process alone, which then tells the commands.
    process = subprocess.Popen(
        command.words,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=_environment(parallel),
        start_new_session=True,
    )
    return _Running(command, process, log)


def _environment(parallel: int) -> Mapping[str, str]:
    share = str(max(1, cores() // parallel))
    return {"OMP_NUM_THREADS": share, **os.environ}


def _ended(one: _Running) -> Ended:
    one.log.close()
    return Ended(one.command.name, one.process.wait(), time.monotonic() - one.begin)


def _stop(running: Sequence[_Running]) -> None:
    for one in running:
        one.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + _SAVE_S
    for one in running:
        try:
            one.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(one.process.pid, signal.SIGKILL)
        _ended(one)
