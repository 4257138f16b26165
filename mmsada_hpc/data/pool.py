"""Run one function over many items in fresh processes: results in order, progress counted inside the workers, the
first error ends it.
"""

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import cv2

from mmsada_hpc.data.progress import Progress
from mmsada_hpc.errors import UserError

A = TypeVar("A")
R = TypeVar("R")

_POLL_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1
_report: Callable[[int], None] | None = None


def advance(count: int) -> None:
    """Called by the function that runs: `count` more units of its work are done."""
    if _report is not None:
        _report(count)


def run(function: Callable[[A], R], items: Sequence[A], *, workers: int, progress: Progress) -> list[R]:
    """[function(item) for item in items] on `workers` processes (1 = here). After an error nothing new is begun; what
    runs may end; then the error is raised.

    Processes are spawned, not forked: OpenCV's and FFmpeg's threads do not survive a fork.
    """
    if min(workers, len(items)) <= 1:
        return _run_here(function, items, progress)
    context = multiprocessing.get_context("spawn")
    counter = context.Value("Q", 0)
    with ProcessPoolExecutor(
        min(workers, len(items)), mp_context=context, initializer=_start_worker, initargs=(counter,)
    ) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            _watch(futures, counter, progress)
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed, perhaps for lack of memory; run the same command again with fewer "
                "--workers (`mmsada prepare` keeps its finished shards)"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _watch(futures: Sequence["Future[R]"], counter: Any, progress: Progress) -> None:
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
        progress.to(counter.value)
        for future in done:
            future.result()


def _run_here(function: Callable[[A], R], items: Sequence[A], progress: Progress) -> list[R]:
    global _report
    done = 0

    def report(count: int) -> None:
        nonlocal done
        done += count
        progress.to(done)

    threads, before = cv2.getNumThreads(), _report
    cv2.setNumThreads(1)
    _report = report
    try:
        return [function(item) for item in items]
    finally:
        _report = before
        cv2.setNumThreads(threads)


def _start_worker(counter: Any) -> None:
    global _report
    _die_with_parent()
    # Ctrl-C reaches the whole process group: workers end without a word, the parent speaks.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    cv2.setNumThreads(1)

    def report(count: int) -> None:
        with counter.get_lock():
            counter.value += count

    _report = report


def _die_with_parent() -> None:
    """Ask Linux to end this process when its parent is killed: an orphan would go on writing where the next run
    writes.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:
        os._exit(1)
