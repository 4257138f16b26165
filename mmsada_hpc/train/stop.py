"""Whoever is told to stop, stops together (law 6): a signal sets a flag, the flag is added up over ranks at the step
boundary, all save.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


class StopFlag:
    """Which signal this rank has seen, if any. Nothing but the flag is touched inside the handler."""

    def __init__(self) -> None:
        self.received: int | None = None

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.received = number

    @contextmanager
    def listening(self) -> Iterator["StopFlag"]:
        """Catch the signals for the time of a training; the former handlers come back."""
        before = {number: signal.signal(number, self._set) for number in _SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Stopped(Exception):
    """The run was told to stop and has saved."""

    def __init__(self, where: str, number: int) -> None:
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name} after {where}; saved: the same command goes on from there")
        self.exit_code = 128 + number
