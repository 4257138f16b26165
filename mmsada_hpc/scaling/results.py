"""What the cells of a study have measured so far, read from their run folders."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from mmsada_hpc.errors import UserError
from mmsada_hpc.observe.goodput import Goodput, read_goodput
from mmsada_hpc.observe.goodput_ledger import RECENT_STEPS
from mmsada_hpc.observe.metrics import read_metrics
from mmsada_hpc.observe.wording import is_number
from mmsada_hpc.scaling.cells import Cell, Study

WARM_UP = 3
"""First updates of a stage that no speed is taken from (at most half of the stage): they connect and allocate."""

_WHY = {"begun": "begun, not finished", "new": "not begun"}

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Spread:
    """The 10, 50 and 90 % points of a measurement."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """A set scored on the way or at the end."""

    step: int
    """Updates over both stages."""
    clips: int
    """Seen in training until then."""
    train_s: float
    """Seconds of updates until then: evaluations, checkpoints and starts are not in it."""
    top1: float
    """Percent."""


@dataclass(frozen=True)
class StepParts:
    """What an update's time went to on rank 0: means over the latest `updates` updates; the parts add up to `step_s`.

    Gradients that are averaged while others are still computed (DDP) are in `compute_s`.
    """

    updates: int
    step_s: float
    data_wait_s: float
    """Waiting for clips to be decoded."""
    compute_s: float
    """Its own forward and backward passes, every micro-batch."""
    slowest_s: float
    """From its own last gradient until the slowest rank has its own, by the ranks' means."""
    rest_s: float
    """Averaging the gradients, the optimiser, and what else is left."""


@dataclass(frozen=True)
class CellResult:
    """A finished cell."""

    cell: Cell
    updates: int
    accuracy: Mapping[str, float]
    """Set -> its final top-1, percent: result.json's, the mean over `eval.checkpoints` where it names several."""
    segments: Mapping[str, int]
    chance: float | None
    steady_step_s: tuple[float, ...]
    """Seconds of every update after the warm-up."""
    evaluations: Mapping[str, tuple[Evaluation, ...]]
    noise: tuple[tuple[int, float], ...]
    """(clips seen, noise scale in clips), where it was measured; infinite where |G|^2 could not be told from zero."""
    noise_ratio: float | None
    """Mean `noise_trace` over mean `noise_grad2` of the last half of the clips: the noise scale without smoothing."""
    rates: tuple[float, ...]
    """The highest learning rate of each stage."""
    parts: StepParts | None
    train_s: float
    """All updates."""
    wall_s: float | None
    """Of every start, without the waiting between them."""
    goodput: Goodput | None

    @property
    def clips(self) -> int:
        """Seen in training."""
        return self.updates * self.cell.global_batch

    @property
    def step_s(self) -> Spread | None:
        return spread(self.steady_step_s)

    @property
    def clips_per_s(self) -> Spread | None:
        return rates_of(self.cell.global_batch, self.steady_step_s)

    @property
    def node_hours(self) -> float | None:
        return None if self.wall_s is None else self.wall_s * self.cell.nodes / 3600

    @property
    def late_noise(self) -> Spread | None:
        """Of the noise scale over the last half of the clips."""
        return spread([noise for clips, noise in self.noise if 2 * clips > self.clips])


@dataclass(frozen=True)
class Missing:
    """A cell that has no result, and why."""

    cell: Cell
    why: str
    is_refused: bool = False
    is_unreadable: bool = False
    """It has a result that cannot be used."""


@dataclass(frozen=True)
class Results:
    """A study as far as it has come."""

    study: Study
    finished: tuple[CellResult, ...]
    missing: tuple[Missing, ...]

    @property
    def awaited(self) -> tuple[Missing, ...]:
        """Cells that can run and have not finished."""
        return tuple(one for one in self.missing if not one.is_refused)


def spread(values: ArrayLike) -> Spread | None:
    """None of no values; where some are infinite, no value between two others is made up."""
    found = np.asarray(values, dtype=np.float64)
    if not found.size:
        return None
    method: Literal["linear", "inverted_cdf"] = "linear" if np.isfinite(found).all() else "inverted_cdf"
    return Spread(*(float(q) for q in np.quantile(found, (0.1, 0.5, 0.9), method=method)))


def rates_of(batch: int, step_s: Sequence[float]) -> Spread | None:
    """Clips/s of updates of `batch` clips that took `step_s`."""
    return spread(batch / np.asarray(step_s, dtype=np.float64))


def read_results(study: Study) -> Results:
    """Every cell, finished or not.

    Raises:
        UserError: not one cell is finished.
    """
    finished, missing = list[CellResult](), list[Missing]()
    for cell in study.cells:
        try:
            found = cell.result
            if found is not None:
                finished.append(read_cell(cell, found))
                continue
        except UserError as error:
            missing.append(Missing(cell, str(error), is_unreadable=True))
            continue
        if cell.refused is not None:
            missing.append(Missing(cell, f"refused: {cell.refused}", is_refused=True))
        else:
            missing.append(Missing(cell, _WHY[cell.state] if cell.diverged is None else f"diverged: {cell.diverged}"))
    if not finished:
        unreadable = next((f" ({one.why})" for one in missing if one.is_unreadable), "")
        raise UserError(
            f"{study.path}: none of its {len(study.cells)} cells is finished in {study.folder}, so there is nothing to "
            f"report{unreadable}; `mmsada scale run {study.path}` runs them"
        )
    return Results(study, tuple(finished), tuple(missing))


def read_cell(cell: Cell, result: Row) -> CellResult:
    """The cell with the result.json `result`, and the rows and the ledger in its folder.

    Raises:
        UserError: metrics.jsonl is not there or damaged.
    """
    rows = read_metrics(cell.config.run.dir)
    by_step = {int(row["global_step"]): row for row in rows if row.get("kind") == "train" and "global_step" in row}
    train = [by_step[step] for step in sorted(by_step)]
    goodput = read_goodput(cell.config.run.dir)
    accuracy, segments = _final(result)
    wall_s, chance = result.get("seconds"), result.get("chance")
    return CellResult(
        cell=cell,
        updates=max(by_step, default=0),
        accuracy=accuracy,
        segments=segments,
        chance=float(chance) if chance is not None and is_number(chance) else None,
        steady_step_s=tuple(steady(train)),
        evaluations=_evaluations(rows, train, cell.global_batch),
        noise=_noise(train, cell.global_batch),
        noise_ratio=_noise_ratio(train),
        rates=_rates(train),
        parts=_parts(train, goodput),
        train_s=math.fsum(_timed(train)),
        wall_s=float(wall_s) if wall_s is not None and is_number(wall_s) else None,
        goodput=goodput,
    )


def steady(train: Sequence[Row]) -> list[float]:
    """Seconds of the updates after the first `WARM_UP` of each stage."""
    found = list[float]()
    for stage in dict.fromkeys(row.get("stage") for row in train):
        times = _timed([row for row in train if row.get("stage") == stage])
        found += times[min(WARM_UP, len(times) // 2) :]
    return found


def _timed(train: Sequence[Row]) -> list[float]:
    return [float(row["step_s"]) for row in train if is_number(row.get("step_s")) and row["step_s"] > 0]


def _final(result: Row) -> tuple[dict[str, float], dict[str, int]]:
    accuracy, segments = dict[str, float](), dict[str, int]()
    for name, row in (result.get("evaluations") or {}).items():
        side, _, split = name.partition("/")
        top1 = result.get(f"{side}_top1", row.get("top1")) if split == "test" else row.get("top1")
        if is_number(top1):
            accuracy[name] = float(top1)
            segments[name] = int(row.get("segments") or 0)
    return accuracy, segments


def _evaluations(rows: Sequence[Row], train: Sequence[Row], batch: int) -> dict[str, tuple[Evaluation, ...]]:
    seconds, spent = {0: 0.0}, 0.0
    for row in train:
        spent += float(row["step_s"]) if is_number(row.get("step_s")) else 0.0
        seconds[int(row["global_step"])] = spent
    found: dict[str, dict[int, Evaluation]] = {}
    for row in rows:
        step = row.get("global_step")
        if row.get("kind") == "eval" and step in seconds and is_number(row.get("top1")):
            one = Evaluation(step, step * batch, seconds[step], float(row["top1"]))
            found.setdefault(str(row.get("set")), {})[step] = one
    return {name: tuple(of[step] for step in sorted(of)) for name, of in found.items()}


def _noise(train: Sequence[Row], batch: int) -> tuple[tuple[int, float], ...]:
    """A scale that is null beside a trace is not missing: the smoothed |G|^2 was not positive, so it is large."""
    found = list[tuple[int, float]]()
    for row in train:
        if is_number(row.get("noise_trace")):
            scale = row.get("noise_scale")
            found.append((int(row["global_step"]) * batch, math.inf if scale is None else float(scale)))
    return tuple(found)


def _noise_ratio(train: Sequence[Row]) -> float | None:
    late = [row for row in train[len(train) // 2 :] if is_number(row.get("noise_trace"))]
    late = [row for row in late if is_number(row.get("noise_grad2"))]
    trace, grad2 = (math.fsum(row[key] for row in late) for key in ("noise_trace", "noise_grad2"))
    return trace / grad2 if trace > 0 and grad2 > 0 else None


def _rates(train: Sequence[Row]) -> tuple[float, ...]:
    highest: dict[int, float] = {}
    for row in train:
        if is_number(row.get("lr")):
            highest[row["stage"]] = max(highest.get(row["stage"], 0.0), float(row["lr"]))
    return tuple(highest[stage] for stage in sorted(highest))


def _parts(train: Sequence[Row], goodput: Goodput | None) -> StepParts | None:
    """The ledger's own times are means over the latest steps of the last start, so the rest is taken over the same."""
    if goodput is None or not goodput.stragglers:
        return None
    updates = min(RECENT_STEPS, goodput.history[-1].steps, len(train))
    latest = [row for row in train[len(train) - updates :] if is_number(row.get("step_s"))]
    if not latest:
        return None
    step_s = math.fsum(row["step_s"] for row in latest) / len(latest)
    wait_s = math.fsum(row.get("data_wait_s") or 0.0 for row in latest) / len(latest)
    own = [rank.own_s for rank in goodput.stragglers]
    own_s = min(max(own[0], wait_s), step_s)
    slowest_s = min(max(own) - own[0], step_s - own_s)
    return StepParts(len(latest), step_s, wait_s, own_s - wait_s, slowest_s, step_s - own_s - slowest_s)
