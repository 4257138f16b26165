"""`mmsada submit --config GRID`: every run of a grid, its cost first; finished runs are kept, the others go on."""

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from mmsada_hpc.cluster.beside import Command, Ended, run_beside
from mmsada_hpc.cluster.profile import Profile
from mmsada_hpc.cluster.queue import only_submitter
from mmsada_hpc.cluster.slurm import need_slurm
from mmsada_hpc.config import Config
from mmsada_hpc.errors import UserError
from mmsada_hpc.observe.wording import duration
from mmsada_hpc.schedule import total_steps
from mmsada_hpc.submit.grid import Grid, GridRun
from mmsada_hpc.submit.queue import Order, obstacles, queue_array

T = TypeVar("T")


def describe_grid(grid: Grid, profile: Profile, *, parallel: int) -> str:
    """Every run with its state, and what the rest of the grid costs."""
    width = max(len(run.name) for run in grid.runs)
    lines = [f"{grid.path}: {len(grid.runs)} runs of {grid.base}, in {grid.folder}", ""]
    lines += [f"  {run.name.ljust(width)}  {_state(run)}" for run in grid.runs]
    return "\n".join([*lines, "", *cost(grid, profile, parallel=parallel)])


def cost(grid: Grid, profile: Profile, *, parallel: int) -> list[str]:
    """Lines about what is still to do: updates, clips, and time by the runs of the grid that are finished."""
    left = [run for run in grid.runs if run.result is None]
    updates = sum(_updates(run) for run in left)
    clips = sum(_updates(run) * run.config.train.global_batch for run in left)
    lines = [
        f"to do: {len(left)} of {len(grid.runs)} runs, {updates:,} updates, {clips:,} clips in training; "
        f"{profile.world_size} rank(s) a run"
    ]
    seconds = [found["seconds"] / _updates(run) for run in grid.runs if (found := run.result) is not None]
    if not left or not seconds:
        return lines if not left else [*lines, "time: not known before a run of this grid has finished"]
    total = statistics.median(seconds) * updates
    rank_hours = total * profile.world_size / 3600
    beside = f", {duration(total / parallel)} at {parallel} runs beside each other" if parallel > 1 else ""
    return [
        *lines,
        f"time: {duration(total)} in all{beside}, {rank_hours:.1f} rank hours, by {len(seconds)} finished runs",
    ]


def run_grid_here(grid: Grid, profile: Profile, *, parallel: int, flags: Sequence[str]) -> int:
    """Run what is not finished on this host; returns the exit status.

    Args:
        flags: `--cluster` and what goes over it, as each run's own command gets them.

    Raises:
        KeyboardInterrupt: after Ctrl-C; the runs have saved, and the same command goes on.
    """
    left = [run for run in grid.runs if run.result is None]
    begin, done = time.monotonic(), 0
    _say(f"{len(grid.runs) - len(left)} of {len(grid.runs)} runs are finished; {parallel} beside each other")

    def on_start(command: Command) -> None:
        _say(f"start   {command.name}  (log {command.log})")

    def on_end(ended: Ended) -> None:
        nonlocal done
        done += 1
        what = "end   " if ended.code == 0 else f"FAILED with {ended.code},"
        spent = time.monotonic() - begin
        eta = duration(spent / done * (len(left) - done))
        _say(f"{what}  {ended.name}  {duration(ended.seconds)}; {done} of {len(left)} done, eta {eta}")

    ended = run_beside(
        [_command(grid, run, flags) for run in left],
        parallel=parallel,
        ranks=profile.tasks_per_node,
        on_start=on_start,
        on_end=on_end,
    )
    failed = [one.name for one in ended if one.code]
    _say(f"{len(ended) - len(failed)} runs in {duration(time.monotonic() - begin)}; `mmsada table {grid.folder}`")
    if failed:
        print(f"error: {len(failed)} runs failed: {', '.join(failed)}; the same command tries again", file=sys.stderr)
    return 1 if failed else 0


def queue_grid(grid: Grid, configs: Sequence[Config], order: Order) -> int:
    """Queue what is not finished, queued or cancelled already, as one array: a task a run.

    Args:
        configs: of the grid's runs, resolved.
    """
    need_slurm()
    with only_submitter(config.run.dir for config in configs):
        left = []
        for run, config, obstacle in zip(grid.runs, configs, obstacles(configs), strict=True):
            if obstacle is None:
                left.append((run, config))
            elif not obstacle.is_finished:  # which the table above says
                _say(f"left out: {obstacle.why}")
        if not left:
            _say("nothing to queue")
            return 0
        name, folder = f"mmsada-{grid.path.stem}", grid.folder.absolute()
        queued = queue_array([config for _, config in left], order, name=name, folder=folder)
    for (run, _), task in zip(left, queued, strict=True):
        _say(f"job {task.job_id}  {run.name}")
    _say(
        f"queued {len(queued)} runs, {order.profile.world_size} ranks each; `submit.py status {grid.folder}` shows them"
    )
    return 0


def _command(grid: Grid, run: GridRun, flags: Sequence[str]) -> Command:
    words = [sys.executable, "-m", "mmsada_hpc.cli", "submit", "--config", str(grid.base), *flags, *run.overrides]
    return Command(run.name, words, run.config.run.dir / "launch.log")


def _state(run: GridRun) -> str:
    found: Mapping[str, Any] | None = run.result
    if found is not None:
        score = f", target {found['target_top1']:.1f} %" if "target_top1" in found else ""
        return f"finished in {duration(found['seconds'])}{score}"
    return f"{'goes on' if run.is_begun else 'new'}, {_updates(run):,} updates of {run.config.train.global_batch}"


def _updates(run: GridRun) -> int:
    return total_steps(run.config.train)


def _say(text: str) -> None:
    print(text, flush=True)


def refuse_unfit(grid: Grid, check: Callable[[GridRun], T]) -> list[T]:
    """Check every run before any is begun; returns what the checks gave.

    Raises:
        UserError: names the first run that cannot be launched.
    """
    found = []
    for run in grid.runs:
        try:
            found.append(check(run))
        except UserError as error:
            raise UserError(f"{grid.path}: {run.name}: {error}") from None
    return found
