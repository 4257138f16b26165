"""How far a long preparation is: a bar in a terminal, a line now and then in a log file."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 20.0


class Progress:
    """Counts to `total`; use as a context manager and call `to` with the count so far. Writes to stderr."""

    def __init__(self, title: str, *, total: int, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._bar = (
            tqdm(total=total, desc=title, unit=unit, file=sys.stderr, dynamic_ncols=True)
            if sys.stderr.isatty()
            else None
        )
        self._spoke = time.monotonic()
        self._done = 0

    def to(self, count: int) -> None:
        """Show that `count` of the total are done; a count that does not grow is not an advance."""
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(max(0, min(count, self._total) - self._done))
        elif now - self._spoke >= _SECONDS_BETWEEN_LINES:
            self._spoke = now
            print(f"{self._title}: {count} of about {self._total} {self._unit}s", file=sys.stderr, flush=True)
        self._done = max(self._done, min(count, self._total))

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            if error is None:
                self._bar.total = self._done  # the total was an estimate
                self._bar.refresh()
            self._bar.close()
