"""`mmsada scale plan STUDY`: every cell with what it costs and by what that is known, or why it cannot run."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsada_hpc.observe.wording import duration
from mmsada_hpc.scaling.cells import Cell, Study
from mmsada_hpc.scaling.costs import Cost, Costs, clips_of, node_hours, read_rows
from mmsada_hpc.scaling.refusals import has_store
from mmsada_hpc.scaling.study import read_study
from mmsada_hpc.schedule import StageSchedule, stage_schedule, total_steps

HELP = "The cells of a study: batch, rates and updates that result, expected cost, and which cannot run and why."
_UNKNOWN = "not known"


@dataclass(frozen=True)
class Planned:
    """A cell that can run, or is finished."""

    cell: Cell
    state: str
    stages: tuple[StageSchedule, StageSchedule]
    cost: Cost | None

    def as_json(self) -> dict[str, Any]:
        cell = self.cell
        return {
            **_identity(cell, self.state),
            "diverged": cell.diverged,
            "learning_rate": [stage.lr for stage in self.stages],
            "warmup_updates": [stage.warmup for stage in self.stages],
            "stage_updates": [stage.steps for stage in self.stages],
            "updates": total_steps(cell.config.train),
            "clips": clips_of(cell),
            "seconds": None if self.cost is None else round(self.cost.seconds, 1),
            "node_hours": None if self.cost is None else round(node_hours(cell, self.cost), 4),
            "source": _UNKNOWN if self.cost is None else self.cost.source,
        }


@dataclass(frozen=True)
class Plan:
    """A study with its costs."""

    study: Study
    planned: tuple[Planned, ...]

    @property
    def refused(self) -> list[Cell]:
        return [cell for cell in self.study.cells if cell.state == "refused"]

    @property
    def diverged(self) -> list[Planned]:
        return [one for one in self.planned if one.state == "diverged"]

    @property
    def left(self) -> list[Planned]:
        return [one for one in self.planned if one.state not in ("finished", "diverged")]


def make_plan(study: Study, rows_of: Sequence[Path] = ()) -> Plan:
    """Cost every cell that is not refused.

    Args:
        rows_of: files of `mmsada bench --json`.
    """
    costs = Costs(study.cells, read_rows(rows_of), cluster=study.cluster)
    planned = []
    for cell in study.cells:
        if (state := cell.state) != "refused":
            train = cell.config.train
            planned.append(Planned(cell, state, (stage_schedule(train, 1), stage_schedule(train, 2)), costs.of(cell)))
    return Plan(study, tuple(planned))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mmsada scale plan`."""
    add_study_arguments(parser)
    parser.add_argument(
        "--rows", type=Path, nargs="+", default=[], metavar="FILE", help="of `mmsada bench e2e|step --json FILE`"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")


def add_study_arguments(parser: argparse.ArgumentParser) -> None:
    """What `plan` and `run` read a study with."""
    parser.add_argument("study", type=Path, metavar="STUDY", help="YAML of a study, a file or a name in configs/")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="dotted keys, for every cell")
    parser.add_argument("--only", default="", metavar="TEXT", help="the cells with this in their name")
    parser.add_argument("--cluster", metavar="NAME", help="profile in configs/cluster or a YAML (default: the study's)")


def study_of(args: argparse.Namespace) -> Study:
    """What `add_study_arguments` asked for."""
    return read_study(args.study, args.overrides, only=args.only, cluster=args.cluster)


def run(args: argparse.Namespace) -> int:
    """Print it; returns the exit status."""
    plan = make_plan(study_of(args), args.rows)
    print(json.dumps(_as_json(plan), indent=1) if args.json else describe(plan))
    return 0


def describe(plan: Plan) -> str:
    """The table, the cells that cannot run, and what all of it costs."""
    study = plan.study
    sources = list(dict.fromkeys(one.cost.source for one in plan.planned if one.cost is not None))
    lines = [
        f"{study.path}: {len(study.cells)} cells of {study.base} in {study.folder}, on --cluster {study.cluster}",
        f"rates and lengths are written for batch {study.base_batch}; every cell sees the same number of {study.hold}",
        "",
        *_table([_HEAD, *(_row(one, sources) for one in plan.planned)]),
        "",
        *(f"  [{number}] by {source}" for number, source in enumerate(sources, 1)),
    ]
    if plan.refused:
        lines += [f"cannot run ({len(plan.refused)} of {len(study.cells)}):"]
        lines += [f"  {named(cells)}: {why}" for why, cells in by_reason(plan.refused).items()]
    lines += [f"diverged: {one.cell.name}: {one.cell.diverged}" for one in plan.diverged]
    lines += [f"the same run twice in the file: {name} is {cell.name}" for cell in study.cells for name in cell.also]
    if stores := sorted({str(one.cell.config.data.store) for one in plan.left if not has_store(one.cell.config)}):
        lines += [f"data.store={', '.join(stores)} is not there: whether it has segments enough is not checked"]
    return "\n".join([*lines, *totals(plan)])


def by_reason(refused: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Cells by what is against them."""
    found: dict[str, list[Cell]] = {}
    for cell in refused:
        found.setdefault(str(cell.refused), []).append(cell)
    return found


def named(cells: Sequence[Cell]) -> str:
    """The first cell's name, and how many more there are."""
    return cells[0].name + (f" and {len(cells) - 1} more" if len(cells) > 1 else "")


_HEAD = (
    "cell",
    "state",
    "ranks",
    "micro x acc",
    "batch",
    "rate 1 / 2",
    "updates",
    "clips",
    "warm-up",
    "time",
    "node-h",
)


def _row(one: Planned, sources: Sequence[str]) -> tuple[str, ...]:
    cell, first, second = one.cell, *one.stages
    time, hours = _UNKNOWN, "-"
    if one.cost is not None:
        time = f"{duration(one.cost.seconds)} [{sources.index(one.cost.source) + 1}]"
        hours = f"{node_hours(cell, one.cost):.3g}"
    return (
        cell.name,
        one.state,
        f"{cell.ranks} = {cell.nodes}x{cell.tasks_per_node}",
        f"{cell.micro_batch} x {cell.accumulation}",
        str(cell.global_batch),
        _pair(f"{first.lr:.3g}", f"{second.lr:.3g}"),
        f"{first.steps} + {second.steps}",
        f"{clips_of(cell):,}",
        _pair(f"{first.warmup:g}", f"{second.warmup:g}"),
        time,
        hours,
    )


def _pair(first: str, second: str) -> str:
    return first if first == second else f"{first} / {second}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as they need, words to the left and numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    cells = [
        [
            text.ljust(width) if column < 2 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
    return ["  " + "  ".join(row).rstrip() for row in cells]


def totals(plan: Plan) -> list[str]:
    """Lines about the whole study and what is left of it."""
    if not plan.planned:
        return ["no cell can run"]
    diverged = f", and {len(plan.diverged)} diverged" if plan.diverged else ""
    done = len(plan.planned) - len(plan.left) - len(plan.diverged)
    return [
        _total("in all", plan.planned),
        f"finished: {done} of {len(plan.planned)} cells that can run{diverged}",
        _total("left", plan.left),
    ]


def _total(what: str, planned: Sequence[Planned]) -> str:
    known = [(one.cell, one.cost) for one in planned if one.cost is not None]
    unknown = len(planned) - len(known)
    updates = sum(total_steps(one.cell.config.train) for one in planned)
    clips = sum(clips_of(one.cell) for one in planned)
    text = f"{what}: {len(planned)} cells, {updates:,} updates, {clips:,} clips"
    if not planned:
        return text
    if not known:
        return f"{text}; time not known before a cell has finished (or give --rows FILE)"
    seconds = sum(cost.seconds for _, cost in known)
    hours = sum(node_hours(cell, cost) for cell, cost in known)
    text = f"{text}; {duration(seconds)} one after another, {hours:.3g} node-hours"
    return f"{text}, and {unknown} cells of which it is not known" if unknown else text


def _identity(cell: Cell, state: str) -> dict[str, Any]:
    return {
        "name": cell.name,
        "also": list(cell.also),
        "part": cell.part,
        "state": state,
        "nodes": cell.nodes,
        "tasks_per_node": cell.tasks_per_node,
        "ranks": cell.ranks,
        "micro_batch": cell.micro_batch,
        "accumulation": cell.accumulation,
        "global_batch": cell.global_batch,
        "optimizer": cell.optimizer,
        "rule": cell.rule,
        "seed": cell.seed,
        "folder": str(cell.config.run.dir),
        "refused": cell.refused,
    }


def _as_json(plan: Plan) -> dict[str, Any]:
    study = plan.study
    known = [(one.cell, one.cost) for one in plan.left if one.cost is not None]
    return {
        "study": str(study.path),
        "base": str(study.base),
        "folder": str(study.folder),
        "cluster": study.cluster,
        "base_batch": study.base_batch,
        "hold": study.hold,
        "cells": [*(one.as_json() for one in plan.planned), *(_identity(cell, "refused") for cell in plan.refused)],
        "left": {
            "cells": len(plan.left),
            "clips": sum(clips_of(one.cell) for one in plan.left),
            "seconds": round(sum(cost.seconds for _, cost in known), 1),
            "node_hours": round(sum(node_hours(cell, cost) for cell, cost in known), 4),
            "cells_of_unknown_cost": len(plan.left) - len(known),
        },
    }
