"""One piece of work at a time in a thread of its own; what it raises is raised again where one waits for it."""

import threading
from collections.abc import Callable


class Background:
    """Runs work beside the caller. The thread is no daemon: an interpreter that ends lets it finish."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin `work`, once what was started before has ended; raises what that one raised."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(work,), name=self._name)
        self._thread.start()

    def poll(self) -> None:
        """Raise, once, what ended work has raised; never blocks."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Block until nothing runs; raises, once, what the work raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error
