"""A bound on a call that keeps to none itself."""

import queue
import threading
from collections.abc import Callable
from typing import TypeVar, cast

T = TypeVar("T")


def within(seconds: float, function: Callable[[], T], *, what: str) -> T:
    """The function's result, or what it raises.

    Raises:
        TimeoutError: it did not return; its thread is left where it is, and the process should end by `os._exit`.
    """
    done: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue()

    def call() -> None:
        try:
            done.put((function(), None))
        except BaseException as error:
            done.put((None, error))

    threading.Thread(target=call, daemon=True).start()
    try:
        result, error = done.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"{what} took more than {seconds:.0f} s") from None
    if error is not None:
        raise error
    return cast(T, result)
