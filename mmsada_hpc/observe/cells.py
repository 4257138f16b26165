"""One cell of a table: the runs of a method on a shift, as a mean over seeds, or why there is none."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mmsada_hpc.observe.runs import Run
from mmsada_hpc.observe.settings import differing, settings_of, who_has_what
from mmsada_hpc.observe.wording import is_number

Score = Callable[[Run], float | None]


@dataclass(frozen=True)
class Cell:
    """What stands at one place of a table.

    mean     percent; None where there is none (`state` says why)
    by_seed  the values behind it
    runs     names of the runs behind it
    state    "" (a number, or a place that has none), "missing" or "mixed" (runs whose settings differ: no mean)
    mark     of a figure of the paper: where it is from
    """

    mean: float | None = None
    by_seed: dict[int, float] = field(default_factory=dict)
    runs: tuple[str, ...] = ()
    state: str = ""
    mark: str = ""

    @property
    def n(self) -> int:
        """Number of seeds."""
        return len(self.by_seed)

    @property
    def std(self) -> float | None:
        """Sample standard deviation (n - 1) over seeds; None for less than two."""
        return statistics.stdev(self.by_seed.values()) if self.n > 1 else None


EMPTY = Cell()


def score_of(key: str, set_name: str) -> Score:
    """A score of one evaluated set. The top-1 of SIDE/test is `SIDE_top1`, the mean over `eval.checkpoints`."""
    side, _, split = set_name.partition("/")

    def score(run: Run) -> float | None:
        value = run.result.get(f"{side}_top1") if (key, split) == ("top1", "test") else None
        if not is_number(value):
            row = run.evaluations.get(set_name) or {}
            value = row.get(key)
        return float(value) if value is not None and is_number(value) else None

    return score


def segments_of(run: Run, set_name: str) -> int | None:
    """Number of scored segments."""
    value = (run.evaluations.get(set_name) or {}).get("segments")
    return int(value) if value is not None and is_number(value) else None


def seed_of(run: Run) -> int:
    """The seed; -1 where it is not known."""
    seed = run.about.get("seed")
    return seed if isinstance(seed, int) else -1


def gather(runs: Sequence[Run], score: Score, *, set_name: str) -> Cell:
    """The cell of `runs`, all of one method and shift. Of runs with one seed the first counts."""
    scored = [(run, value) for run in runs if (value := score(run)) is not None]
    names = tuple(run.name for run, _ in scored)
    if not scored:
        return Cell(state="missing")
    if mixture([run for run, _ in scored], set_name=set_name):
        return Cell(runs=names, state="mixed")
    by_seed: dict[int, float] = {}
    for run, value in scored:
        by_seed.setdefault(seed_of(run), value)
    return Cell(statistics.fmean(by_seed.values()), dict(sorted(by_seed.items())), names)


def mixture(runs: Sequence[Run], *, set_name: str) -> str:
    """What keeps runs from being averaged, `train.lr: 0.01 (2 runs), 0.1 (mcd-s2)`; "" where nothing does."""
    configured = [run for run in runs if run.config]
    # a supervised run stands in every column with its target, whatever source its config names
    left_out = {"data.source"} if all(run.is_supervised for run in runs) else set()
    keys = [key for key in differing([settings_of(run) for run in configured]) if key not in left_out]
    found = [f"{key}: {who_has_what(configured, key)}" for key in keys]
    counts = {run.name: segments_of(run, set_name) for run in runs}
    if len(set(counts.values())) > 1:
        found.append("segments: " + ", ".join(f"{count} ({name})" for name, count in counts.items()))
    return "; ".join(found)


def repeated(runs: Sequence[Run]) -> list[tuple[int, list[str]]]:
    """(seed, names of the runs) for seeds that occur more than once."""
    seeds: dict[int, list[str]] = {}
    for run in runs:
        seeds.setdefault(seed_of(run), []).append(run.name)
    return [(seed, names) for seed, names in seeds.items() if len(names) > 1]


def mean_of(cells: Sequence[Cell]) -> Cell:
    """The mean over columns; missing as soon as one of them is. Its spread is over the seeds' own means, where every
    column has the same seeds.
    """
    values = [cell.mean for cell in cells if cell.mean is not None]
    if not values or len(values) < len(cells):
        return Cell(state="missing")
    names = tuple(dict.fromkeys(name for cell in cells for name in cell.runs))
    seeds = set(cells[0].by_seed)
    by_seed: dict[int, float] = {}
    if all(set(cell.by_seed) == seeds for cell in cells):
        by_seed = {seed: statistics.fmean(cell.by_seed[seed] for cell in cells) for seed in sorted(seeds)}
    return Cell(statistics.fmean(values), by_seed, names)
