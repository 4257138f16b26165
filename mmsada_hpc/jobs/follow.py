"""Follow what a rank prints, across requeues, until the run ends; on a terminal with its progress below."""

import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmsada_hpc.jobs.facts import Facts, checkpoint_words, read_facts
from mmsada_hpc.jobs.find import Found
from mmsada_hpc.jobs.output import is_submitits, output_of, read_end
from mmsada_hpc.jobs.queue import ask
from mmsada_hpc.jobs.state import ACTIVE, Standing, stand
from mmsada_hpc.jobs.tail import read_recent
from mmsada_hpc.observe.progress import Progress
from mmsada_hpc.observe.screen import Screen

_COPY_S, _ASK_S, _LOOK_S = 0.3, 4.0, 1.0
_PROGRESS = re.compile(r"stage \d/2  step \d+/\d+")
_CHUNK = 1024 * 1024


class Follower:
    """Of one rank of one run."""

    def __init__(self, run: Found, *, rank: int, errors: bool, lines: int) -> None:
        self._run, self._rank, self._errors, self._lines = run, rank, errors, lines
        self._screen = Screen(sys.stdout)
        self._bar = _Bar(self._screen) if self._screen.is_tty and not rank and not errors else None
        self._path: Path | None = None
        self._position = 0
        self._said = ""

    def follow(self) -> int:
        """Returns 0 where the run finished, else 1."""
        try:
            while True:
                facts = read_facts(self._run)
                queue = ask(facts.job_ids)
                standing = stand(facts, queue)
                self._copy_for(facts, _ASK_S if facts.job_ids else _LOOK_S)
                if queue.silent and standing.state in (*ACTIVE, "unknown"):
                    self._say(f"Slurm does not answer ({queue.silent}); waiting for it")
                elif standing.state not in ACTIVE:
                    return self._end(standing)
                else:
                    self._say(_words(standing))
        finally:
            if self._bar is not None:
                self._bar.close()
            self._screen.keep_live()

    def _end(self, standing: Standing) -> int:
        facts = read_facts(self._run)  # which may be newer than its state
        self._copy_for(facts, 0.0)
        if self._bar is not None:
            self._bar.close()
        note = f": {standing.note}" if standing.note else ""
        saved = f"; saved: {checkpoint_words(facts.checkpoints[-1])}" if facts.checkpoints else ""
        if standing.state == "finished":
            self._say(f"{facts.path} is finished")
            return 0
        self._say(f"{facts.path} is {standing.state}{note}{saved}; `mmsada resume {facts.path}` goes on")
        return 1

    def _copy_for(self, facts: Facts, seconds: float) -> None:
        """Show what comes within that time."""
        deadline = time.monotonic() + seconds
        path = output_of(facts, rank=self._rank, errors=self._errors).path
        if path is not None and path.exists() and path != self._path:
            self._open(path)
        while True:
            self._copy()
            if self._bar is not None:
                self._bar.update(facts)
            if time.monotonic() >= deadline:
                return
            time.sleep(_COPY_S)

    def _open(self, path: Path) -> None:
        """The first file is shown from its last lines on, one of a later job from its first."""
        if self._path is None:
            lines, self._position = read_end(path, self._lines)
            for line in lines:
                self._show(line)
        else:
            self._position = 0
        self._path = path

    def _copy(self) -> None:
        """The whole lines that came since the last time."""
        if self._path is None:
            return
        try:
            with self._path.open("rb") as file:
                file.seek(self._position)
                new = file.read(_CHUNK)
        except OSError:
            return  # a file server may be away for a moment
        whole = new if len(new) == _CHUNK else new[: new.rfind(b"\n") + 1]
        self._position += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            if not is_submitits(line):
                self._show(line)

    def _show(self, line: str) -> None:
        if self._bar is None or not _PROGRESS.match(line):
            self._screen.print(line)

    def _say(self, text: str) -> None:
        """What is not the run's own word; each once."""
        if text and text != self._said:
            self._screen.print(f"-- {text}")
        self._said = text


class _Bar:
    """The progress line of the run, made again from its metrics, which come with every update."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._progress: Progress | None = None
        self._stage, self._global_step = 0, 0
        self._time = 0.0
        """Of the last row: by the run's own clock the time left is known from the first look on."""

    def update(self, facts: Facts) -> None:
        """Take in what came since the last time; a run that went back to a checkpoint begins there again."""
        rows = read_recent(facts.path).train
        if rows and int(rows[-1].get("global_step", 0)) < self._global_step:
            self._global_step = 0
        for row in rows:
            if int(row.get("global_step", 0)) > self._global_step:
                self._take(facts, row)

    def _take(self, facts: Facts, row: Mapping[str, Any]) -> None:
        stage, step = int(row.get("stage", 1)), int(row.get("step", 0))
        self._time = float(row.get("time", time.time()))
        if self._progress is None or stage != self._stage or self._global_step == 0:
            self.close()
            total = facts.steps[stage == 2]
            self._progress = Progress(
                self._screen, total, f"stage {stage}/2", start=max(0, step - 1), clock=lambda: self._time
            )
        self._progress.update(step, row)
        self._stage, self._global_step = stage, int(row.get("global_step", 0))

    def close(self) -> None:
        """Leave the line as it stands."""
        if self._progress is not None:
            self._progress.close()
            self._progress = None


def _words(standing: Standing) -> str:
    note = f" ({standing.note})" if standing.note else ""
    job = f"job {standing.job_id}"
    return {
        "waiting": f"{job} waits for its nodes{note}",
        "requeued": f"{job} is requeued, waiting for a node{note}",
        "saving": f"{job} is ending{note}",
        "running": standing.note,
    }.get(standing.state, "")
