"""Keeps the noise of libraries off the screen: it goes to run.log, the screen stays for what a person reads."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from mmsada_hpc.errors import UserError

_CLEAR_LINE = "\r\x1b[K"


class Screen:
    """What a person sees. On every rank but 0 it swallows all it is given.

    A screen that goes away (a closed pipe, a lost terminal) must not end a training of days: the first failed write is
    noted in run.log and the screen is silent from then on.
    """

    def __init__(self, out: TextIO, *, visible: bool = True, errors: TextIO | None = None) -> None:
        self.out = out
        self._errors = errors
        self.visible = visible
        self.is_tty = visible and out.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._live = ""

    def print(self, text: str = "") -> None:
        """Prints whole lines, above the live line if there is one."""
        self._write(f"{_CLEAR_LINE}{text}\n{self._live}" if self._live else f"{text}\n")

    def alarm(self, text: str) -> None:
        """For what must be seen from any rank: to the log, and to what was standard error before."""
        for out in (self._errors, sys.stderr):
            with contextlib.suppress(OSError):  # one of them may be on a full disk
                if out is not None:
                    print(text, file=out, flush=True)

    def set_live(self, line: str) -> None:
        """Shows `line` in place at the bottom of a terminal, "" takes it away. Does nothing without a terminal."""
        if self.is_tty and line != self._live:
            self._write(_CLEAR_LINE + line)
            self._live = line

    def keep_live(self) -> None:
        """Ends the live line: it stays on the terminal and the next output starts below it."""
        if self._live:
            self._live = ""
            self._write("\n")

    def close(self) -> None:
        """Close both outputs."""
        for out in (self.out, self._errors):
            with contextlib.suppress(OSError):  # a broken pipe shows again at close
                if out is not None:
                    out.close()

    @property
    def columns(self) -> int:
        """Width of the terminal in characters, now (it may have been resized); 80 where it does not say."""
        try:
            return os.get_terminal_size(self.out.fileno()).columns or 80
        except (OSError, ValueError):
            return 80

    def _write(self, text: str) -> None:
        if not self.visible:
            return
        try:
            self.out.write(text)
            self.out.flush()
        except OSError as error:
            self.visible = self.is_tty = False
            print(f"the screen is gone ({error}); the run goes on, see metrics.jsonl", file=sys.stderr)


# Screens of the redirections in force, outermost first: a nested one must reach the terminal, not the outer log.
_active: list[Screen] = []


def log_path(run_dir: str | Path, rank: int) -> Path:
    """Where rank `rank` keeps its noise: run.log for rank 0, run.rank3.log for rank 3."""
    return Path(run_dir) / ("run.log" if rank == 0 else f"run.rank{rank}.log")


def _text_stream(descriptor: int) -> TextIO:
    # closefd=False: descriptors 1 and 2 are never ours to close; whole lines keep their order among the libraries' own
    raw = io.FileIO(descriptor, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True)


def _flush(*streams: TextIO) -> None:
    for stream in streams:
        with contextlib.suppress(OSError, ValueError):  # a closed or broken stream holds nothing worth keeping
            stream.flush()


@contextlib.contextmanager
def _redirected(log_descriptor: int) -> Iterator[tuple[int, int]]:
    """Points descriptors 1 and 2 and Python's two streams at the log; yields copies of the former descriptors."""
    streams = (sys.stdout, sys.stderr)
    _flush(*streams)
    saved = (os.dup(1), os.dup(2))
    os.dup2(log_descriptor, 1)
    os.dup2(log_descriptor, 2)
    sys.stdout, sys.stderr = _text_stream(1), _text_stream(2)
    try:
        yield saved
    finally:
        _flush(sys.stdout, sys.stderr, *streams)
        sys.stdout, sys.stderr = streams
        for target, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, target)
            os.close(copy)


def _open_screen(former: tuple[int, int], rank: int) -> Screen:
    errors = _text_stream(former[1])
    if rank != 0:
        return Screen(open(os.devnull, "w", encoding="utf-8"), visible=False, errors=errors)
    source = _active[0].out.fileno() if _active else former[0]
    return Screen(open(os.dup(source), "w", encoding="utf-8", errors="replace"), errors=errors)


@contextlib.contextmanager
def quiet_screen(run_dir: str | Path, rank: int) -> Iterator[Screen]:
    """Sends all that any library or child process prints to the rank's log; yields the screen for our own lines.

    Works on file descriptors 1 and 2, so C++ and child processes are covered as well as print, logging and warnings.
    The log is appended to. All is put back on exit, also after an exception, whose traceback the log keeps.
    May be nested.

    Raises UserError when the log cannot be written.
    """
    path = log_path(run_dir, rank)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log_descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise UserError(
            f"{path}: cannot write the log of the run ({error.strerror}); choose another run.dir"
        ) from error
    with _redirected(log_descriptor) as former:
        os.close(log_descriptor)
        screen = _open_screen(former, rank)
        _active.append(screen)
        try:
            yield screen
        except (Exception, KeyboardInterrupt):
            traceback.print_exc()
            raise
        finally:
            screen.keep_live()
            _active.remove(screen)
            screen.close()
