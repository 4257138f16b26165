"""Nobody waits for ever: a thread that ends a rank which hears nothing new, and says who is to blame first."""

import contextlib
import faulthandler
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from mmsada_hpc.cluster.heartbeat import Beat, Heart, still_beats
from mmsada_hpc.cluster.host import end_process
from mmsada_hpc.cluster.reach import without_answer

EXIT_CODE = 75
_LOOK_S = 0.5
# A rank that goes down with an exception has this long; what a library does at exit may wait for the others.
_FAREWELL_S = 30.0
# Where a rank is within a step, in order: the one that is furthest behind keeps the others waiting.
_ORDER = {"start": 0, "step": 1, "agree": 2, "evaluate": 3, "save": 4, "end": 9, "failed": 9, "lost": 9}


class Watchdog:
    """Watches the main thread of this rank through its heart."""

    def __init__(self, heart: Heart, run_dir: Path, *, patience_s: float, say: Callable[[str], None]) -> None:
        self._heart, self._run_dir, self._say = heart, run_dir, say
        self.patience_s = patience_s
        """Longest silence of the main thread; the loop makes it shorter after the first update."""
        self._closed = threading.Event()
        self._deadline: float | None = None
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """The run went well."""
        self._closed.set()

    def expect_end(self) -> None:
        """The main thread goes down with an exception: should that take too long, end it."""
        self._deadline = time.monotonic() + _FAREWELL_S

    def _watch(self) -> None:
        while not self._closed.wait(_LOOK_S):
            if self._deadline is not None:
                if time.monotonic() > self._deadline:
                    end_process(EXIT_CODE)
            elif time.monotonic() - self._heart.moved_at > self.patience_s:
                self._bark()
                end_process(EXIT_CODE)

    def _bark(self) -> None:
        beat = self._heart.now
        waited = f"rank {beat.rank} on {beat.host} has waited for {self.patience_s:.0f} s ({_place(beat)})"
        with contextlib.suppress(
            OSError, ValueError
        ):  # a full disk has no room for the log, and must not keep it alive
            print(f"{waited}; Python stacks:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=2, all_threads=True)
        self._say(f"error: no news for {self.patience_s:.0f} s (watch.step_seconds): {self.blame()}")
        # Ranks notice within moments of each other; the first to leave must not cut off the stacks of the last.
        time.sleep(2 * self._heart.seconds)

    def blame(self) -> str:
        """Who keeps the others waiting, by the heartbeats."""
        beat = self._heart.now
        return blame(self._run_dir, start=beat.start, seconds=2.5 * self._heart.seconds, here=beat.host)


def blame(run_dir: Path, *, start: str, seconds: float, here: str) -> str:
    """One sentence on which ranks are gone or behind; watches the heartbeats for `seconds`.

    Args:
        here: this host, which looks whether the others answer where all ranks seem well.
    """
    alive, silent = still_beats(run_dir, start=start, seconds=seconds)
    failed = [beat for beat in alive if beat.phase == "failed"]
    if failed:
        return ", ".join(f"rank {beat.rank} on {beat.host} failed: {beat.why}" for beat in failed[:4])
    if silent:
        return f"no sign of life from {_names(silent)}{_rest(alive)}"
    if not alive:
        return "no rank has left a heartbeat in the run folder"
    waiting = [beat for beat in alive if not beat.has_ended] or alive  # those that left have found out before
    behind = min(_progress(beat) for beat in waiting)
    late = [beat for beat in waiting if _progress(beat) == behind]
    if len(late) == len(waiting):
        mute = without_answer({beat.host for beat in alive} - {here})
        network = f"{here} gets no answer from {', '.join(mute)}: the network is cut" if mute else "all hosts answer"
        return f"{network}; all {len(alive)} ranks are alive, {_place(waiting[0])}"
    return f"furthest behind is {_names(late)}{_rest([beat for beat in waiting if beat not in late])}"


def _progress(beat: Beat) -> tuple[int, int, int]:
    return beat.stage, beat.step, _ORDER.get(beat.phase, 0)


def _names(beats: list[Beat]) -> str:
    named = [f"rank {beat.rank} on {beat.host} (process {beat.pid}, {_place(beat)})" for beat in beats[:4]]
    return ", ".join(named) + (f" and {len(beats) - 4} more" if len(beats) > 4 else "")


def _rest(beats: list[Beat]) -> str:
    if not beats:
        return ""
    return f"; {len(beats)} {'other waits' if len(beats) == 1 else 'others wait'} ({_place(beats[0])})"


def _place(beat: Beat) -> str:
    if beat.phase in ("start", "end", "failed", "lost"):
        return {"start": "at the start", "lost": "has lost contact"}.get(beat.phase, "has ended")
    doing = {"step": "computing", "agree": "waiting for the others", "evaluate": "in an evaluation", "save": "saving"}
    return f"{doing.get(beat.phase, beat.phase)} after step {beat.step} of stage {beat.stage}"
