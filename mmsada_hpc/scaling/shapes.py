"""How a cell's ranks, micro-batch and accumulation make its global batch, or follow from it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Protocol

from mmsada_hpc.config import Config
from mmsada_hpc.data.layout import plan_layout
from mmsada_hpc.errors import UserError


class Axes(Protocol):
    """Of a part of the study file."""

    nodes: tuple[int, ...]
    tasks_per_node: tuple[int, ...]
    micro_batch: tuple[int, ...]
    accumulation: tuple[int, ...]
    global_batch: tuple[int, ...]


@dataclass(frozen=True)
class Shape:
    """Where a cell runs and how its global batch is split."""

    nodes: int
    tasks_per_node: int
    micro_batch: int
    """0 where the batch does not split; so is the accumulation."""
    accumulation: int
    global_batch: int
    asked: str = ""
    """Of one that does not split: what the file gives beside the global batch, `-m5` or `-a2`."""

    @property
    def ranks(self) -> int:
        return self.nodes * self.tasks_per_node

    @property
    def splits(self) -> bool:
        return self.micro_batch > 0

    def __str__(self) -> str:
        split = f"m{self.micro_batch}-a{self.accumulation}" if self.splits else f"b{self.global_batch}{self.asked}"
        return f"n{self.nodes}x{self.tasks_per_node}-{split}"


def shapes_of(axes: Axes) -> Iterator[Shape]:
    """Every shape of a part.

    Weak scaling gives the micro-batch, and the global batch grows with the ranks. Strong scaling gives the global
    batch; the micro-batch follows, or where that is given the accumulation.
    """
    for nodes, tasks in product(axes.nodes, axes.tasks_per_node):
        ranks = nodes * tasks
        if not axes.global_batch:
            for micro, times in product(axes.micro_batch, axes.accumulation or (1,)):
                yield Shape(nodes, tasks, micro, times, ranks * micro * times)
        elif axes.micro_batch:
            for batch, micro in product(axes.global_batch, axes.micro_batch):
                times, over = divmod(batch, ranks * micro)
                yield Shape(nodes, tasks, *((0, 0) if over or not times else (micro, times)), batch, f"-m{micro}")
        else:
            for batch, times in product(axes.global_batch, axes.accumulation or (1,)):
                micro, over = divmod(batch, ranks * times)
                asked = f"-a{times}" if axes.accumulation else ""
                yield Shape(nodes, tasks, *((0, 0) if over or not micro else (micro, times)), batch, asked)


def why_not_split(shape: Shape, config: Config) -> str:
    """Of a shape that does not split: what is wrong, and which sizes fit (law 2: micro-batches of whole batch-norm
    groups).
    """
    from mmsada_hpc.methods import find_method  # imports torch, which `--help` can do without

    ranks, batch = shape.ranks, shape.global_batch
    with_what = {"": "", "m": "x micro-batches of ", "a": "x accumulation "}[shape.asked[1:2]]
    what = f"global batch {batch} does not split over {ranks} rank(s) {with_what}{shape.asked[2:]}".rstrip()
    group, domains = config.model.batch_norm.group_size, len(find_method(config.method.name).trains_on)
    fits = [str(micro) for micro in range(1, batch // ranks + 1) if _fits(config, batch, micro, ranks, group, domains)]
    if fits:
        return f"{what}; micro-batches that fit: {', '.join(fits)}"
    step = math.lcm(ranks * group, domains * group)
    near = sorted({max(step, batch // step * step), -(-batch // step) * step})
    return f"{what}; global batches that fit: multiples of {step}, such as {' or '.join(map(str, near))}"


def _fits(config: Config, batch: int, micro: int, ranks: int, group: int, domains: int) -> bool:
    if batch % (ranks * micro):
        return False
    try:
        plan_layout(
            global_batch=batch,
            micro_batch=micro,
            world_size=ranks,
            group_size=group,
            num_domains=domains,
            layout=config.train.layout,
        )
    except UserError:
        return False
    return True
