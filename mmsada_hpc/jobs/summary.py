"""One run in a row: what the table and `--json` show of it."""

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mmsada_hpc.jobs.account import Account, read_account
from mmsada_hpc.jobs.facts import Facts, job_of, read_all
from mmsada_hpc.jobs.find import Found
from mmsada_hpc.jobs.queue import Queue, ask
from mmsada_hpc.jobs.state import ACTIVE, Standing, State, stand
from mmsada_hpc.observe.goodput import Straggler
from mmsada_hpc.observe.wording import in_report_order, is_number


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What is known of one run; None and "" where nothing is."""

    run: str
    path: str
    state: State
    note: str
    """Why it waits, failed or was stopped."""
    stage: int
    step: int
    """Updates done in that stage, of `stage_steps`."""
    stage_steps: int
    global_step: int
    steps: int
    """Of both stages."""
    clips_per_s: float | None
    """Median of the last updates; of a finished run its mean."""
    top1_of: str
    top1: float | None
    """Percent, of the last evaluation or the result."""
    eta_s: float | None
    """Until the last update, of a run that runs."""
    job_id: str | None
    hosts: tuple[str, ...]
    """Of a run that is at work, by rank."""
    restarts: int
    lost_s: float | None
    """Work done again, and time between starts."""
    slowest: Straggler | None
    """The slowest rank."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Seen:
    """Runs at one moment."""

    facts: list[Facts]
    standings: list[Standing]
    summaries: list[Summary]
    queue: Queue


def look(runs: Sequence[Found]) -> Seen:
    """Read the runs and ask Slurm, once, for all of their jobs that matter."""
    facts = read_all(runs)
    queue = ask([job for run in facts if run.result is None or len(run.jobs) > 1 for job in run.job_ids])
    now = time.time()
    standings = [stand(run, queue, now=now) for run in facts]
    pairs = zip(facts, standings, strict=True)
    return Seen(facts, standings, [summarise(run, standing) for run, standing in pairs], queue)


def summarise(facts: Facts, standing: Standing) -> Summary:
    """The row of a run."""
    stage, step, global_step = _position(facts)
    first, second = facts.steps
    top1_of, top1 = _top1(facts)
    restarts = max(0, len(facts.starts) - 1)
    is_active = standing.state in ACTIVE
    # The account of a run that never was restarted, and that is over, has nothing to say here.
    account = read_account(facts.path) if restarts or is_active else Account(0.0 if facts.starts else None)
    return Summary(
        run=facts.name,
        path=str(facts.path),
        state=standing.state,
        note=standing.note,
        stage=stage,
        step=step,
        stage_steps=first if stage == 1 else second,
        global_step=global_step,
        steps=first + second,
        clips_per_s=_rate(facts),
        top1_of=top1_of,
        top1=top1,
        eta_s=_eta(facts, global_step) if standing.state == "running" else None,
        job_id=standing.job_id,
        hosts=tuple(beat.host for beat in facts.beats) if _is_at_work(facts, standing) else (),
        restarts=restarts,
        lost_s=account.lost_s,
        slowest=account.slowest if is_active else None,
    )


def _is_at_work(facts: Facts, standing: Standing) -> bool:
    return standing.state in ("running", "saving") and job_of(facts.start) == standing.job_id


def _position(facts: Facts) -> tuple[int, int, int]:
    """Stage, updates in it, updates in all."""
    if facts.recent.train:
        row = facts.recent.train[-1]
        return int(row.get("stage", 1)), int(row.get("step", 0)), int(row.get("global_step", 0))
    return 1, 0, 0


def _rate(facts: Facts) -> float | None:
    if facts.result is not None and is_number(facts.result.get("clips_per_s")) and facts.result["clips_per_s"]:
        return float(facts.result["clips_per_s"])
    rates = [row["clips_per_s"] for row in facts.recent.train if is_number(row.get("clips_per_s"))]
    return statistics.median(rates) if rates else None


def _top1(facts: Facts) -> tuple[str, float | None]:
    """Name of the set and its top-1: the result, or what the last evaluation gave; the target where there is one."""
    for side in ("target", "source"):
        final = (facts.result or {}).get(f"{side}_top1")
        if final is not None and is_number(final):
            return side, float(final)
    scored = {str(row.get("set")): row for row in facts.recent.evals}
    for name in in_report_order(scored):
        value = scored[name].get("top1")
        if value is not None and is_number(value):
            return name.partition("/")[0], float(value)
    return "", None


def _eta(facts: Facts, global_step: int) -> float | None:
    """From the time between updates, as a pause for an evaluation in between does not move their median."""
    times = [float(row["time"]) for row in facts.recent.train if is_number(row.get("time"))]
    gaps = [after - before for before, after in itertools.pairwise(times) if after >= before]
    left = sum(facts.steps) - global_step
    return statistics.median(gaps) * left if gaps and left >= 0 else None
