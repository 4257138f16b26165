"""Accuracy against batch: recipes, means over seeds, where accuracy breaks, and when an accuracy is reached."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmsada_hpc.observe.wording import standard_error
from mmsada_hpc.scaling.results import CellResult, Evaluation, Results, Spread, spread

STANDARD_ERRORS = 2.0
"""Accuracy breaks where it is lower by more than so many standard errors of the difference."""
LAST = 3
"""Evaluations at the end of a cell whose mean is its smoothed accuracy."""
SHARE = 0.9
"""Of the best smoothed mean: the accuracy that is waited for, unless another is asked for."""


@dataclass(frozen=True, order=True)
class Recipe:
    """An optimiser of the study file, with the rule for its rate."""

    optimizer: str
    rule: str

    def __str__(self) -> str:
        return f"{self.optimizer}, {self.rule}"


@dataclass(frozen=True)
class Point:
    """One recipe at one global batch. Percent."""

    recipe: Recipe
    batch: int
    cells: tuple[CellResult, ...]
    by_seed: Mapping[int, float]
    """Runs of one seed on other ranks see the same clips: they are one measurement, their mean."""
    segments: int

    @property
    def mean(self) -> float:
        return statistics.fmean(self.by_seed.values())

    @property
    def n(self) -> int:
        return len(self.by_seed)

    @property
    def sd(self) -> float | None:
        """Over seeds, n - 1; None of one seed."""
        return statistics.stdev(self.by_seed.values()) if self.n > 1 else None

    @property
    def error(self) -> float | None:
        """Standard error of the mean over seeds; None of one seed."""
        return None if self.sd is None else self.sd / math.sqrt(self.n)


@dataclass(frozen=True)
class Break:
    """Up to which batch a recipe is as accurate as the reference."""

    recipe: Recipe
    reference: Point
    is_seed_spread: bool
    """Whether the allowance comes from seeds; else from the number of segments alone."""
    holds_to: int | None
    """None: no batch of it holds."""
    breaks_at: int | None
    """None: not reached in this study."""
    recovers_at: tuple[int, ...]
    """Larger batches that hold again."""
    largest: int
    steps: tuple[tuple[int, float, float], ...]
    """(batch, difference from the reference, what is allowed), percentage points."""


@dataclass(frozen=True)
class Reach:
    """When a cell first had an accuracy, by its evaluations."""

    result: CellResult
    at: Evaluation | None
    """None: never. An evaluation counts when the one after it, if any, has the accuracy too."""
    before: Evaluation | None
    """The evaluation before: the accuracy was reached after it."""

    @property
    def clips(self) -> int:
        """Until it was reached, or seen in vain."""
        return self.result.clips if self.at is None else self.at.clips

    @property
    def train_s(self) -> float:
        """Seconds of updates until it was reached, or spent in vain."""
        return self.result.train_s if self.at is None else self.at.train_s


def recipes_of(results: Results) -> list[Recipe]:
    """In the order of the study."""
    return list(dict.fromkeys(Recipe(one.cell.optimizer, one.cell.rule) for one in results.finished))


def cells_of(results: Results, recipe: Recipe) -> list[CellResult]:
    """With those of the same optimiser at the base batch, where every rule gives the same rate; each seed once."""
    own = [one for one in results.finished if Recipe(one.cell.optimizer, one.cell.rule) == recipe]
    base = results.study.base_batch
    known = {one.cell.seed for one in own if one.cell.global_batch == base}
    shared = dict[int, list[CellResult]]()
    for one in results.finished:
        cell = one.cell
        if cell.optimizer == recipe.optimizer and cell.global_batch == base and cell.seed not in known:
            shared.setdefault(cell.seed, []).append(one)
    lent = [one for found in shared.values() for one in found if one.cell.rule == found[0].cell.rule]
    return [*own, *lent]


def points_of(results: Results, name: str) -> list[Point]:
    """The set's accuracy of every recipe at every batch, recipes in the study's order, batches ascending."""
    found = list[Point]()
    for recipe in recipes_of(results):
        by_batch: dict[int, list[CellResult]] = {}
        for one in cells_of(results, recipe):
            if name in one.accuracy:
                by_batch.setdefault(one.cell.global_batch, []).append(one)
        found += [_point(recipe, batch, by_batch[batch], name) for batch in sorted(by_batch)]
    return found


def _point(recipe: Recipe, batch: int, cells: Sequence[CellResult], name: str) -> Point:
    by_seed: dict[int, list[float]] = {}
    for one in cells:
        by_seed.setdefault(one.cell.seed, []).append(one.accuracy[name])
    means = {seed: statistics.fmean(values) for seed, values in sorted(by_seed.items())}
    return Point(recipe, batch, tuple(cells), means, max(one.segments[name] for one in cells))


def seed_sd(points: Sequence[Point]) -> float | None:
    """Standard deviation over seeds within a point, pooled over all points of several seeds; None without one.

    Points that share their cells (the base batch) count once.
    """
    several = {tuple(one.cell.name for one in point.cells): point for point in points if point.n > 1}.values()
    freedom = sum(point.n - 1 for point in several)
    if not freedom:
        return None
    return math.sqrt(sum((point.n - 1) * (point.sd or 0.0) ** 2 for point in several) / freedom)


def reference_of(results: Results, points: Sequence[Point]) -> Point:
    """What every recipe is compared with: the study's first recipe at the base batch, or at its smallest one."""
    first = [point for point in points if point.recipe == points[0].recipe]
    return next((point for point in first if point.batch == results.study.base_batch), first[0])


def breaks_of(results: Results, points: Sequence[Point]) -> list[Break]:
    """Of every recipe."""
    if not points:
        return []
    sd, reference = seed_sd(points), reference_of(results, points)
    found = list[Break]()
    for recipe in dict.fromkeys(point.recipe for point in points):
        own = [point for point in points if point.recipe == recipe]
        steps = [(p.batch, p.mean - reference.mean, _allowed(p, reference, sd)) for p in own]
        held = [batch for batch, difference, allowed in steps if difference >= -allowed]
        lost = [batch for batch, *_ in steps if batch not in held and batch > reference.batch]
        first = min(lost, default=None)
        below = [batch for batch in held if first is None or batch < first]
        again = [batch for batch in held if first is not None and batch > first]
        found.append(
            Break(
                recipe=recipe,
                reference=reference,
                is_seed_spread=sd is not None,
                holds_to=max(below, default=None),
                breaks_at=first,
                recovers_at=tuple(again),
                largest=own[-1].batch,
                steps=tuple(steps),
            )
        )
    return found


def _allowed(point: Point, reference: Point, sd: float | None) -> float:
    """`STANDARD_ERRORS` of the difference of two means."""
    if tuple(one.cell.name for one in point.cells) == tuple(one.cell.name for one in reference.cells):
        return 0.0
    if sd is not None:
        return STANDARD_ERRORS * sd * math.sqrt(1 / point.n + 1 / reference.n)
    errors = [standard_error(one.mean, one.segments) or 0.0 for one in (point, reference)]
    return STANDARD_ERRORS * math.hypot(*errors)


def default_accuracy(results: Results, name: str) -> float | None:
    """`SHARE` of the best mean over seeds of the mean of a cell's last `LAST` evaluations; None without any."""
    best = list[float]()
    for recipe in recipes_of(results):
        by_batch: dict[int, list[float]] = {}
        for one in cells_of(results, recipe):
            last = [evaluation.top1 for evaluation in one.evaluations.get(name, ())[-LAST:]]
            if last:
                by_batch.setdefault(one.cell.global_batch, []).append(statistics.fmean(last))
        best += [statistics.fmean(values) for values in by_batch.values()]
    return SHARE * max(best) if best else None


def reach(result: CellResult, name: str, accuracy: float) -> Reach:
    """When `result` first had `accuracy` percent on a set."""
    found = result.evaluations.get(name, ())
    for index, one in enumerate(found):
        if all(nearby.top1 >= accuracy for nearby in found[index : index + 2]):
            return Reach(result, one, found[index - 1] if index else None)
    return Reach(result, None, found[-1] if found else None)


def critical_batch(results: Results) -> Spread | None:
    """Median over cells of their noise scale over the last half of training, with the 10-90 % range over cells."""
    return spread([late.median for one in results.finished if (late := one.late_noise) is not None])
