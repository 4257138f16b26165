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
# Room to save a checkpoint after Ctrl-C; a second one cuts it short.
_SAVE_S, _REMIND_S = 60.0, 5.0
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
        KeyboardInterrupt: after Ctrl-C or SIGTERM; the ranks had time to save and are gone by then.
    """
    job = _start(function, profile, folder)
    ranks, output = _Ranks(job), _Output(job.task(0).paths.stdout, screen)
    with terminate_is_interrupt():
        try:
            _follow(job, ranks, output)
        except KeyboardInterrupt:
            _stop(job, ranks, output)
            raise
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
    with _deaf_to_ctrl_c():
        job = executor.submit(function)
    assert isinstance(job, submitit.LocalJob)
    return job


class _Ranks:
    """The processes of a job, which submitit does not tell about."""

    def __init__(self, job: LocalJob) -> None:
        self.job = job
        self._everything: set[psutil.Process] = set()
        self._running: dict[int, psutil.Process] = {}
        self._have_begun = False
        self._gone: dict[int, None] = {}

    @property
    def lost(self) -> int | None:
        """The rank that has been gone without a result for longest."""
        return next(iter(self._gone), None)

    def are_well(self) -> bool:
        """Look again: does every rank run, or has it returned?"""
        self._running = self._look()
        self._have_begun = self._have_begun or bool(self._running)
        outcomes = _outcomes(self.job)
        missing = set(range(self.job.num_tasks)) - set(self._running) - set(outcomes) if self._have_begun else set()
        # A rank that is only not there yet leaves again; one that died before it was ever seen stays.
        self._gone = {rank: None for rank in [*self._gone, *sorted(missing)] if rank in missing}
        return not missing and all(outcome == "success" for outcome, _ in outcomes.values())

    def _look(self) -> dict[int, psutil.Process]:
        """Rank -> process, of those that run now."""
        found: dict[int, psutil.Process] = {}
        with contextlib.suppress(psutil.NoSuchProcess):  # the controller ended between two looks
            controller = psutil.Process(int(self.job.job_id))
            self._everything.update(controller.children(recursive=True))
            for process in controller.children():
                if (rank := _rank_of(process)) is not None:
                    found[rank] = process
        return found

    def terminate(self) -> None:
        """Tell every rank to save and stop."""
        for process in self._running.values():
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended since
                process.terminate()

    def kill(self) -> None:
        """End whatever is left of the job."""
        self.are_well()
        for process in self._everything:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _rank_of(process: psutil.Process) -> int | None:
    """The rank that a child of the controller is; None for one that has ended, or has not begun its program yet."""
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        rank = process.environ().get("SUBMITIT_LOCAL_GLOBALID")
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # denied: in the middle of its exec, or of its end
        return None
    return None if rank is None else int(rank)


class _Output:
    """Copies a growing file to the screen, without submitit's own lines."""

    def __init__(self, path: Path, screen: TextIO) -> None:
        self.path = path
        self.screen = screen
        self._position = 0

    def copy(self) -> None:
        """The whole lines that came since the last time."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._position)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._position += len(whole)
        for line in whole.decode(errors="replace").splitlines(keepends=True):
            if not _SUBMITIT_LINE.match(line):
                self.screen.write(line)
        self.screen.flush()


def _follow(job: LocalJob, ranks: _Ranks, output: _Output) -> None:
    """Copy rank 0's output until the job ends, or until a rank failed and the others had time to notice."""
    well_at = time.monotonic()
    while True:
        is_over = job.state != "RUNNING"
        output.copy()
        if ranks.are_well():
            well_at = time.monotonic()
        if is_over or time.monotonic() - well_at > _GRACE_S:
            return
        time.sleep(_POLL_S)


def _stop(job: LocalJob, ranks: _Ranks, output: _Output) -> None:
    """Let the ranks save and end; a rank that is still starting is told again until it listens."""
    output.screen.write("stopping: the ranks save and end; Ctrl-C again ends them at once\n")
    begin, told = time.monotonic(), 0
    while job.state == "RUNNING" and time.monotonic() - begin < _SAVE_S:
        if time.monotonic() - begin >= told * _REMIND_S:
            ranks.are_well()
            ranks.terminate()
            told += 1
        output.copy()
        time.sleep(_POLL_S)
    output.copy()


def _end(job: LocalJob, ranks: _Ranks) -> None:
    """Leave nothing behind: the controller ends by itself once its ranks are gone."""
    ranks.kill()
    deadline = time.monotonic() + _GRACE_S
    while job.state == "RUNNING" and time.monotonic() < deadline:
        time.sleep(_POLL_S)


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
def terminate_is_interrupt() -> Iterator[None]:
    """SIGTERM takes the same way out as Ctrl-C, so that nothing that was started outlives this process."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """What is started inside ignores Ctrl-C, on which submitit's controller would kill its ranks within a second."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
