"""Several commands on this host, a few beside each other, each with a share of cores and GPUs; told to stop, all do."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from mmsada_hpc.cluster.host import cores
from mmsada_hpc.cluster.local import terminate_is_interrupt, visible_gpus

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
    slot: int
    process: "subprocess.Popen[bytes]"
    log: IO[bytes]
    begin: float = field(default_factory=time.monotonic)


def run_beside(
    commands: Sequence[Command],
    *,
    parallel: int,
    ranks: int = 1,
    on_start: Callable[[Command], None],
    on_end: Callable[[Ended], None],
) -> list[Ended]:
    """Run every command, `parallel` at a time, each on its share of the cores and the GPUs.

    A command that fails does not stop the others.

    Args:
        ranks: processes that each command starts, which share what it has.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM; the commands were told to stop and have ended.
    """
    waiting, running, ended = list(commands), list[_Running](), list[Ended]()
    with terminate_is_interrupt():
        try:
            while waiting or running:
                while waiting and len(running) < parallel:
                    on_start(waiting[0])
                    slot = min(set(range(parallel)) - {one.slot for one in running})
                    running.append(_start(waiting.pop(0), slot, share_of(slot, parallel=parallel, ranks=ranks)))
                for one in [r for r in running if r.process.poll() is not None]:
                    running.remove(one)
                    ended.append(_ended(one))
                    on_end(ended[-1])
                time.sleep(_POLL_S)
        finally:
            _stop(running)
    return ended


def share_of(slot: int, *, parallel: int, ranks: int, gpus: Sequence[int] | None = None) -> dict[str, str]:
    """What the command in one of `parallel` slots has set: threads of each rank, and the GPUs in sight.

    With fewer GPUs than slots they are shared in turn.

    Args:
        gpus: of this host; None = those in sight.
    """
    share = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, cores() // (parallel * ranks)))}
    found = list(visible_gpus() if gpus is None else gpus)
    if not found:
        return share
    each = len(found) // parallel
    mine = found[slot * each : (slot + 1) * each] if each else [found[slot % len(found)]]
    return share | {"CUDA_VISIBLE_DEVICES": ",".join(map(str, mine))}


def _start(command: Command, slot: int, share: Mapping[str, str]) -> _Running:
    command.log.parent.mkdir(parents=True, exist_ok=True)
    log = command.log.open("wb")
    # A session of its own: Ctrl-C reaches this process alone, which then tells the commands.
    process = subprocess.Popen(
        command.words,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ, **share},
        start_new_session=True,
    )
    return _Running(command, slot, process, log)


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
