"""Whoever is told to stop, stops together (law 6): a signal sets a flag, the flag is added up over ranks at the step
boundary, all save. This file needs no torch, so that a job can listen from its first moment on.
"""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

# The first that any rank has seen is what all take for the reason: USR2 is the launcher's warning before a time limit,
# SIGTERM Slurm's before a preemption (or a person's scancel), SIGINT a person's.
SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


class StopFlag:
    """Which signals this rank has seen. The handler only counts, and lets a second Ctrl-C end the process."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(SIGNALS, 0)
        self.former: dict[signal.Signals, Any] = {}
        """The handlers that were there before, such as submitit's for USR2."""

    def _count(self, number: int, frame: FrameType | None) -> None:
        self.counts[signal.Signals(number)] += 1
        if number == signal.SIGINT and self.counts[signal.SIGINT] > 1:  # a person who does not want to wait
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    @contextmanager
    def listening(self) -> Iterator["StopFlag"]:
        """Catch the signals; the former handlers come back at the end."""
        self.former = {number: signal.signal(number, self._count) for number in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in self.former.items():
                signal.signal(number, handler)

    def flags(self) -> list[float]:
        """1 for each of `SIGNALS` that this rank has seen, to be added up over ranks."""
        return [float(self.counts[number] > 0) for number in SIGNALS]

    def former_handler(self, number: signal.Signals) -> Callable[[int, FrameType | None], Any] | None:
        """The function that handled a signal before; None where it was the system's default."""
        handler = self.former.get(number)
        return handler if callable(handler) else None


def agreed_signal(totals: Sequence[float]) -> signal.Signals | None:
    """The reason to stop, from the sum of all ranks' `flags`; None = go on."""
    return next((number for number, total in zip(SIGNALS, totals, strict=True) if total > 0), None)


class Interrupted(Exception):
    """All ranks have agreed to stop, at the same place; nothing has been saved yet."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number


class Stopped(Exception):
    """The run was told to stop and has saved."""

    def __init__(self, where: str, number: signal.Signals) -> None:
        super().__init__(f"stopped by {number.name} {where}; saved: the same command goes on from there")
        self.number = number
        self.exit_code = 128 + number
