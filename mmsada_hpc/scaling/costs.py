"""What a cell costs, by what was measured: finished runs of the study, rows of `mmsada bench`, runs of the same shape.

Nothing measured, nothing said.
"""

import json
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsada_hpc.cluster.local import visible_gpus
from mmsada_hpc.cluster.profile import Profile
from mmsada_hpc.config import Config
from mmsada_hpc.errors import UserError
from mmsada_hpc.scaling.cells import Cell
from mmsada_hpc.scaling.refusals import profile_for
from mmsada_hpc.schedule import total_steps

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Cost:
    """Of one cell."""

    seconds: float
    source: str
    """By what it is known."""


def clips_of(cell: Cell) -> int:
    """Clips in training."""
    return total_steps(cell.config.train) * cell.global_batch


def node_hours(cell: Cell, cost: Cost) -> float:
    return cell.nodes * cost.seconds / 3600


class Costs:
    """What the cells of a study cost.

    Args:
        cells: of the study, the finished among them.
        rows: of `mmsada bench e2e` or `bench step`.
    """

    def __init__(self, cells: Sequence[Cell], rows: Rows, *, cluster: str) -> None:
        self._rows, self._cluster = rows, cluster
        self._finished = [(cell, float(found["seconds"])) for cell in cells if (found := cell.result) is not None]
        self._former: dict[str, Cost | None] = {}

    def of(self, cell: Cell) -> Cost | None:
        """None: not known."""
        mine = next((seconds for other, seconds in self._finished if other.name == cell.name), None)
        if mine is not None:
            return Cost(mine, "its own end")
        return self._by_finished(cell) or by_rows(cell, self._rows) or self._by_former(cell)

    def _by_finished(self, cell: Cell) -> Cost | None:
        """Seconds for each clip of the cells that are most alike; start, evaluation and end are in them."""
        levels: dict[str, Callable[[Cell], tuple[Any, ...]]] = {
            "of this shape and optimiser": lambda one: (*_ranks(one), one.micro_batch, one.accumulation, one.optimizer),
            "of this shape": lambda one: (*_ranks(one), one.micro_batch, one.accumulation),
            "on these ranks with this micro-batch": lambda one: (*_ranks(one), one.micro_batch),
            "on these ranks": _ranks,
        }
        for words, key in levels.items():
            rates = [seconds / clips_of(one) for one, seconds in self._finished if key(one) == key(cell)]
            if rates:
                return Cost(statistics.median(rates) * clips_of(cell), f"finished cells {words}")
        return None

    def _by_former(self, cell: Cell) -> Cost | None:
        from mmsada_hpc.methods import batch_layout  # imports torch, which `--help` can do without
        from mmsada_hpc.submit.estimate import former_speed

        profile = profile_for(self._cluster, cell.nodes, cell.tasks_per_node)
        layout = batch_layout(cell.config, cell.ranks)
        key = f"{cell.ranks} {cell.config.train.global_batch} {cell.optimizer}"
        if key not in self._former:
            speed = former_speed(cell.config, layout, device=_device(cell.config, profile))
            source = (
                "" if speed is None else f"runs of this shape in runs/, training alone ({speed.example} and others)"
            )
            self._former[key] = None if speed is None else Cost(1 / speed.clips_per_s, source)
        per_clip = self._former[key]
        return None if per_clip is None else Cost(per_clip.seconds * clips_of(cell), per_clip.source)


def _ranks(cell: Cell) -> tuple[int, int]:
    return cell.nodes, cell.tasks_per_node


def _device(config: Config, profile: Profile) -> str:
    has_gpus = bool(profile.gpus_per_node) if profile.executor == "slurm" else bool(visible_gpus())
    return "cpu" if config.train.device == "cpu" or not has_gpus else "cuda"


def read_rows(paths: Sequence[Path]) -> Rows:
    """Rows as `mmsada bench --json FILE` wrote them.

    Raises:
        UserError: a file that cannot be read, or is none of rows.
    """
    rows: list[dict[str, Any]] = []
    for path in paths:
        try:
            found = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        except (OSError, ValueError) as error:
            raise UserError(f"--rows {path}: not rows of `mmsada bench --json FILE` ({error})") from None
        if not all(isinstance(row, dict) and {"bench", "name", "value"} <= row.keys() for row in found):
            raise UserError(f"--rows {path}: not rows of `mmsada bench --json FILE`")
        rows += found
    return rows


def by_rows(cell: Cell, rows: Rows) -> Cost | None:
    """By the throughput of the training loop on as many ranks (`bench e2e`, at this batch or the nearest one), else of
    a single step (`bench step`) on every rank.
    """
    if not rows:
        return None
    return _by_loop(cell, rows) or _by_step(cell, rows)


def _by_loop(cell: Cell, rows: Rows) -> Cost | None:
    from mmsada_hpc.bench.e2e_run import shape_of

    wanted = f"throughput, {shape_of(cell.config, cell.ranks)}"
    rates: dict[int, list[float]] = {}
    for row in rows:
        batch = re.search(r" N=(\d+) ", str(row["name"]))
        if row["bench"] == "e2e" and batch and re.sub(r" N=\d+ ", f" N={cell.global_batch} ", row["name"]) == wanted:
            rates.setdefault(int(batch[1]), []).append(float(row["value"]))
    if not rates:
        return None
    nearest = min(rates, key=lambda batch: abs(math.log(batch / cell.global_batch)))
    at = "" if nearest == cell.global_batch else f", measured at batch {nearest}"
    return Cost(clips_of(cell) / statistics.median(rates[nearest]), f"bench e2e on {cell.ranks} ranks{at}")


def _by_step(cell: Cell, rows: Rows) -> Cost | None:
    from mmsada_hpc.bench.step_model import Form, Shape

    data, form = cell.config.data, Form("fused", cell.config.train.precision == "bf16")
    name = f"{form} {Shape(cell.micro_batch, data.num_frames, data.crop, cell.config.model.width)}"
    rates = [float(row["value"]) for row in rows if row["bench"] == "step" and row["name"] == name]
    if not rates:
        return None
    source = "bench step of one rank; loader and communication are left out"
    return Cost(clips_of(cell) / (statistics.median(rates) * cell.ranks), source)
