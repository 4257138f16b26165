"""One job on this host through submitit's local executor: start its ranks, show what rank 0 shows, end with its end."""

import contextlib
import os
import pickle
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, TextIO, TypeAlias

import psutil
import submitit

from mmsada_hpc.cluster.profile import Profile
from mmsada_hpc.errors import UserError

LocalJob: TypeAlias = "submitit.LocalJob[Any]"

_POLL_S = 0.2
# A rank that failed leaves the others waiting for it in a collective; most notice at once, none may wait for ever.
_GRACE_S = 20.0
_CTRL_C_S, _CANCEL_S = 2.5, 10.0
_SUBMITIT_LINE = re.compile(r"submitit [A-Z]+ \(")


class JobFailedError(RuntimeError):
    """A rank of the job ended badly, for a reason that is not the user's input."""


def run_local(function: Callable[[], Any], profile: Profile, *, folder: Path, screen: TextIO) -> Any:
    """Run a picklable function on every rank and wait.

    Args:
        folder: for submitit's pickles and each rank's output.
        screen: where rank 0's standard output goes, as it comes.

    Returns:
        What rank 0 returned.

    Raises:
        UserError: as raised inside a rank.
        JobFailedError: any other failure, with the end of its traceback and the file that has the rest.
        KeyboardInterrupt: after Ctrl-C or SIGTERM; the ranks are gone by then.
    """
    job = _start(function, profile, folder)
    ranks = _Ranks(job)
    with _terminate_is_interrupt():
        try:
            _follow(job, ranks, screen)
        finally:
            _end(job, ranks)
    return _result(job, ranks.lost)


def visible_gpus(environ: Mapping[str, str] | None = None, *, devices: Path = Path("/dev")) -> list[int]:
    """Indices of the GPUs this process may use, found without loading torch."""
    allowed = (os.environ if environ is None else environ).get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return [int(index) for index in allowed.split(",") if index.strip().isdigit()]
    return sorted(int(path.name.removeprefix("nvidia")) for path in devices.glob("nvidia[0-9]*"))


def _start(function: Callable[[], Any], profile: Profile, folder: Path) -> LocalJob:
    gpus = visible_gpus()[: profile.gpus_per_node]
    executor = submitit.LocalExecutor(folder, python=profile.python)
    executor.update_parameters(
        tasks_per_node=profile.tasks_per_node,
        gpus_per_node=len(gpus),
        visible_gpus=gpus,
        timeout_min=profile.minutes,
        signal_delay_s=profile.signal_delay_s,
    )
    folder.mkdir(parents=True, exist_ok=True)
    with _standard_error_to(folder / "controller.log"):
        job = executor.submit(function)
    assert isinstance(job, submitit.LocalJob)
    return job


class _Ranks:
    """The processes of a job, which submitit does not tell about."""

    def __init__(self, job: LocalJob) -> None:
        self.job = job
        self.lost: int | None = None
        """The first rank that was seen to be gone without a result."""
        self._everything: set[psutil.Process] = set()
        self._by_rank: dict[int, psutil.Process] = {}

    def are_well(self) -> bool:
        """Look again: does every rank run, or has it returned?"""
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended between two looks
            controller = psutil.Process(int(self.job.job_id))
            self._everything.update(controller.children(recursive=True))
            for process in controller.children():
                rank = process.environ().get("SUBMITIT_LOCAL_GLOBALID")  # not there yet between fork and exec
                if rank is not None:
                    self._by_rank[int(rank)] = process
        outcomes = _outcomes(self.job)
        gone = [rank for rank, process in self._by_rank.items() if not process.is_running() and rank not in outcomes]
        self.lost = self.lost if self.lost is not None else next(iter(gone), None)
        return not gone and all(outcome == "success" for outcome, _ in outcomes.values())

    def kill(self) -> None:
        """End whatever is left of the job."""
        for process in self._everything:
            if process.is_running():
                process.kill()


def _follow(job: LocalJob, ranks: _Ranks, screen: TextIO) -> None:
    """Copy rank 0's output until the job ends, or until a rank failed and the others had time to notice."""
    output = job.task(0).paths.stdout
    position, well_at = 0, time.monotonic()
    while True:
        is_over = job.state != "RUNNING"
        position = _copy_from(output, position, screen)
        if ranks.are_well():
            well_at = time.monotonic()
        if is_over or time.monotonic() - well_at > _GRACE_S:
            return
        time.sleep(_POLL_S)


def _copy_from(path: Path, position: int, screen: TextIO) -> int:
    """Copy the whole lines that came since `position` (bytes), without submitit's own; returns the new position."""
    if not path.exists():
        return position
    with path.open("rb") as file:
        file.seek(position)
        new = file.read()
    whole = new[: new.rfind(b"\n") + 1]
    for line in whole.decode(errors="replace").splitlines(keepends=True):
        if not _SUBMITIT_LINE.match(line):
            screen.write(line)
    screen.flush()
    return position + len(whole)


def _end(job: LocalJob, ranks: _Ranks) -> None:
    """Cancel what still runs. The controller stops its ranks on SIGINT, after a second by force.

    A second SIGINT in that second would end the controller before the force, and Ctrl-C in a terminal has sent the
    first one already: hence the wait before it, and the look at what is left after it.
    """
    if not _wait(job, _CTRL_C_S):
        job.cancel()
        _wait(job, _CANCEL_S)
    ranks.kill()


def _wait(job: LocalJob, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while job.state == "RUNNING" and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return job.state != "RUNNING"


def _outcomes(job: LocalJob) -> dict[int, tuple[str, Any]]:
    """Rank -> ("success", value) or ("error", traceback), the earliest first; ranks that still run are missing."""
    paths = [(rank, job.task(rank).paths.result_pickle) for rank in range(job.num_tasks)]
    ended = [(path.stat().st_mtime_ns, rank, path) for rank, path in paths if path.exists()]
    return {rank: pickle.loads(path.read_bytes()) for _, rank, path in sorted(ended)}


def _result(job: LocalJob, lost: int | None) -> Any:
    outcomes = _outcomes(job)
    errors = {rank: str(trace) for rank, (outcome, trace) in outcomes.items() if outcome == "error"}
    for trace in errors.values():
        if (message := _user_error(trace)) is not None:
            raise UserError(message)
    missing = [rank for rank in range(job.num_tasks) if rank not in outcomes]
    if lost is not None or (missing and not errors):
        rank = missing[0] if lost is None else lost
        log = job.task(rank).paths.stderr
        raise JobFailedError(f"rank {rank} ended without a result (killed, out of memory?); see {log}\n{_tail(log)}")
    for rank, trace in errors.items():
        log = job.task(rank).paths.stderr
        raise JobFailedError(f"rank {rank} failed; all of it is in {log}\n{_last_lines(trace)}")
    return outcomes[0][1]


def _user_error(trace: str) -> str | None:
    """The message, where a traceback ends in a UserError."""
    last = trace.rstrip().rpartition("\n")[2]
    marker = f"{UserError.__module__}.{UserError.__qualname__}: "
    return last.removeprefix(marker) if last.startswith(marker) else None


def _tail(path: Path) -> str:
    return _last_lines(path.read_text(errors="replace")) if path.exists() else ""


def _last_lines(text: str, *, num_lines: int = 15) -> str:
    return "\n".join(text.rstrip().splitlines()[-num_lines:])


@contextlib.contextmanager
def _terminate_is_interrupt() -> Iterator[None]:
    """SIGTERM takes the same way out as Ctrl-C, so that no rank outlives this process."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _standard_error_to(path: Path) -> Iterator[None]:
    """What is started inside writes its errors to a file: Ctrl-C would put the controller's traceback on the screen."""
    saved = os.dup(2)
    with path.open("ab") as log:
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
