"""What a study is made of: cells, each one run of a shape, an optimiser with a rule for its rate, and a seed."""

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsada_hpc.config import Config
from mmsada_hpc.observe.screen import log_path
from mmsada_hpc.submit.grid import Grid, GridRun

_NOT_FINITE = re.compile(r"UserError: (.+ not finite at step \d+ of stage \d+); no update was made")
_TAIL = 4096
"""Bytes of a log that hold its last line."""


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    name: str
    """`base/n1x2-m8-a1/sgd-linear/0`: part/shape/optimiser-rule/seed; its folder below the study's."""
    part: str
    """Which part of the study file."""
    nodes: int
    tasks_per_node: int
    """Ranks on each node."""
    micro_batch: int
    """Clips a rank takes at once; 0 where the global batch does not split (the cell is refused then)."""
    accumulation: int
    """Micro-batches a rank takes for one update; 0 as above."""
    global_batch: int
    optimizer: str
    """Name of the entry in the study file."""
    rule: str
    """fixed | linear | sqrt."""
    seed: int
    config: Config
    """With `run.dir`; the study's base where the cell's own cannot be made (the cell is refused then)."""
    overrides: tuple[str, ...]
    """What it changes in the base config, `key=value`; empty where its config cannot be made."""
    refused: str | None = None
    """Why it cannot run, else None."""
    also: tuple[str, ...] = ()
    """Names of later cells of the file that would be this very run: same settings, shape and seed."""

    @property
    def ranks(self) -> int:
        return self.nodes * self.tasks_per_node

    @property
    def run(self) -> GridRun:
        return GridRun(self.name, self.overrides, self.config)

    @property
    def result(self) -> dict[str, Any] | None:
        """As `GridRun.result`: what its result.json holds, None while it is not finished.

        Raises:
            UserError: the file is damaged, or was written by a run with other settings.
        """
        return self.run.result if self.overrides else None

    @property
    def diverged(self) -> str | None:
        """`loss not finite at step 43 of stage 1`, where that is how its last start ended: another one would end the
        same way (law 1).
        """
        if self.result is not None or not self.overrides:
            return None
        lines = _end_of(log_path(self.config.run.dir, rank=0)).rstrip().splitlines()
        found = _NOT_FINITE.search(lines[-1]) if lines else None
        return found[1] if found else None

    @property
    def state(self) -> str:
        """finished | refused | diverged | begun | new."""
        if self.result is not None:
            return "finished"
        if self.refused is not None:
            return "refused"
        if self.diverged is not None:
            return "diverged"
        return "begun" if self.run.is_begun else "new"


def _end_of(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL), os.SEEK_SET)
            return file.read().decode(errors="replace")
    except OSError:
        return ""


@dataclass(frozen=True)
class Study:
    """All cells of one file, in its order."""

    path: Path
    base: Path
    folder: Path
    base_batch: int
    """The global batch that the recipe's rates and lengths are written for."""
    cluster: str
    """A profile, as `--cluster` takes it."""
    cells: tuple[Cell, ...]
    hold: str = "samples"
    """What every cell sees alike: samples (equal epochs) or updates (equal steps)."""

    @property
    def left(self) -> tuple[Cell, ...]:
        """What can run and has come to no end."""
        return tuple(cell for cell in self.cells if cell.state in ("new", "begun"))

    def by_resources(self, states: Collection[str]) -> dict[tuple[int, int], Grid]:
        """(nodes, tasks_per_node) -> a grid of the cells in one of `states`: the tasks of an array share what they ask
        for, so that each number of nodes and ranks is a grid of its own.
        """
        found: dict[tuple[int, int], list[GridRun]] = {}
        for cell in self.cells:
            if cell.state in states:
                found.setdefault((cell.nodes, cell.tasks_per_node), []).append(cell.run)
        return {key: Grid(self.path, self.base, self.folder, tuple(runs)) for key, runs in found.items()}
