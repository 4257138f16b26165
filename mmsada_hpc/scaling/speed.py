"""Throughput and efficiency against ranks: weak scaling (clips a rank fixed) and strong (global batch fixed)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mmsada_hpc.scaling.results import CellResult, Results, Spread, StepParts, spread

Kind = Literal["weak", "strong"]
KINDS: tuple[Kind, ...] = ("weak", "strong")
_Split = Callable[[CellResult], list[str]]


@dataclass(frozen=True)
class SpeedPoint:
    """A shape, over all updates of its cells after the warm-up."""

    ranks: int
    layouts: tuple[str, ...]
    """`2x1`: nodes times ranks on each."""
    clips_per_s: Spread
    efficiency: Spread
    """Clips/s a rank over those of the series' fewest ranks (their median): 1 is ideal."""
    cells: tuple[CellResult, ...]


@dataclass(frozen=True)
class SpeedSeries:
    """Shapes that differ in their ranks; at least two."""

    kind: Kind
    label: str
    points: tuple[SpeedPoint, ...]


def speed_series(results: Results, kind: Kind) -> list[SpeedSeries]:
    """Every series of a kind, in the order of the study; rules and seeds, which take no time, are pooled."""
    timed = [one for one in results.finished if one.steady_step_s]
    many = len({one.cell.optimizer for one in timed}) > 1

    def label(one: CellResult) -> list[str]:
        return [f"{_size(one, kind)}{f', {one.cell.optimizer}' if many else ''}"]

    return [one for name, cells in _grouped(timed, label).items() for one in _series(cells, kind, name, splits=_SPLITS)]


def _size(one: CellResult, kind: Kind) -> str:
    """What is held fixed."""
    cell = one.cell
    if kind == "strong":
        return f"batch {cell.global_batch}"
    times = f" in {cell.accumulation} parts" if cell.accumulation > 1 else ""
    return f"{cell.micro_batch * cell.accumulation} clips a rank{times}"


def _series(cells: Sequence[CellResult], kind: Kind, label: str, *, splits: Sequence[_Split]) -> list[SpeedSeries]:
    """One line where every number of ranks has one shape; else the cells apart by the first of `splits`, and so on."""
    shapes, by_ranks = _grouped(cells, _shape), _grouped(cells, lambda one: [str(one.cell.ranks)])
    if len(by_ranks) < 2:
        return []
    if len(shapes) == len(by_ranks) or not splits:
        return [SpeedSeries(kind, label, _points(by_ranks.values()))]
    apart = _grouped(cells, splits[0])
    words = {word: f"{label}, {word}" if len(apart) > 1 else label for word in apart}
    return [one for word, some in apart.items() for one in _series(some, kind, words[word], splits=splits[1:])]


def _grouped(cells: Sequence[CellResult], keys: _Split) -> dict[str, list[CellResult]]:
    found: dict[str, list[CellResult]] = {}
    for one in cells:
        for key in keys(one):
            found.setdefault(key, []).append(one)
    return found


def _shape(one: CellResult) -> list[str]:
    cell = one.cell
    return [f"{cell.nodes} {cell.tasks_per_node} {cell.micro_batch} {cell.accumulation}"]


def _parts_of(one: CellResult) -> list[str]:
    """Of the study file: a cell that several parts ask for is run once and stands in all of them."""
    names = (one.cell.name, *one.cell.also)
    return list(dict.fromkeys(f"part {name.partition('/')[0]}" for name in names))


# What tells shapes of the same ranks apart, in this order
_SPLITS: tuple[_Split, ...] = (
    _parts_of,
    lambda one: [f"{one.cell.tasks_per_node} a node"],
    lambda one: [f"accumulation {one.cell.accumulation}"],
    lambda one: [f"micro-batch {one.cell.micro_batch}"],
)


def _points(groups: Iterable[Sequence[CellResult]]) -> tuple[SpeedPoint, ...]:
    ascending = sorted(groups, key=lambda cells: cells[0].cell.ranks)
    pooled = [_pooled(cells) for cells in ascending]
    ranks = [cells[0].cell.ranks for cells in ascending]
    ideal = pooled[0].median / ranks[0]
    return tuple(
        SpeedPoint(
            number,
            tuple(dict.fromkeys(f"{one.cell.nodes}x{one.cell.tasks_per_node}" for one in cells)),
            speed,
            Spread(*(value / number / ideal for value in (speed.low, speed.median, speed.high))),
            tuple(cells),
        )
        for cells, speed, number in zip(ascending, pooled, ranks, strict=True)
    )


def _pooled(cells: Sequence[CellResult]) -> Spread:
    found = spread(np.concatenate([one.cell.global_batch / np.asarray(one.steady_step_s) for one in cells]))
    assert found is not None  # cells without a timed update are left out above
    return found


def step_parts(results: Results) -> dict[str, list[StepParts]]:
    """Of every shape (and optimiser, where there are several): the parts of its cells' updates, ranks ascending."""
    known = [one for one in results.finished if one.parts is not None]
    many = len({one.cell.optimizer for one in known}) > 1
    known.sort(key=lambda one: (one.cell.ranks, one.cell.global_batch, one.cell.accumulation))
    found: dict[str, list[StepParts]] = {}
    for one in known:
        assert one.parts is not None
        found.setdefault(shape_label(one, with_optimizer=many), []).append(one.parts)
    return found


def shape_label(one: CellResult, *, with_optimizer: bool) -> str:
    """`2 ranks on 1 node, 2 x 16 x 2 = 64, lars`: ranks x micro-batch x accumulation = global batch."""
    cell = one.cell
    where = f"{_counted(cell.ranks, 'rank')} on {_counted(cell.nodes, 'node')}"
    split = f"{cell.ranks} x {cell.micro_batch} x {cell.accumulation} = {cell.global_batch}"
    return f"{where}, {split}{f', {cell.optimizer}' if with_optimizer else ''}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
