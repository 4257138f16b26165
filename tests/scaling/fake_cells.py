"""Writes the run folders of a study's cells as trainings would leave them, with chosen numbers, in no time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmsada_hpc.config import dump_config, load_config
from mmsada_hpc.observe.goodput_rows import StartRow, append_row
from mmsada_hpc.scaling.cells import Cell, Study

BASE = Path("demo.yaml")
SEGMENTS = 100


def fake_cell(
    folder: Path,
    *,
    nodes: int = 1,
    tasks: int = 1,
    micro: int = 16,
    accumulation: int = 1,
    recipe: tuple[str, str] = ("sgd", "linear"),
    seed: int = 0,
    part: str = "base",
    refused: str | None = None,
) -> Cell:
    """A cell below the study's `folder`; nothing is written."""
    name = f"{part}/n{nodes}x{tasks}-m{micro}-a{accumulation}/{recipe[0]}-{recipe[1]}/{seed}"
    batch = nodes * tasks * micro * accumulation
    words = (f"train.global_batch={batch}", f"seed={seed}", f"run.dir={folder / name}")
    return Cell(
        name=name,
        part=part,
        nodes=nodes,
        tasks_per_node=tasks,
        micro_batch=micro,
        accumulation=accumulation,
        global_batch=batch,
        optimizer=recipe[0],
        rule=recipe[1],
        seed=seed,
        config=load_config(BASE, words),
        overrides=words,
        refused=refused,
    )


def fake_study(folder: Path, cells: Sequence[Cell], *, base_batch: int = 16) -> Study:
    """Of cells below `folder`."""
    return Study(folder / "study.yaml", BASE, folder, base_batch, "local", tuple(cells))


def write_cell(
    cell: Cell,
    *,
    target: float,
    source: float = 90.0,
    updates: int = 20,
    step_s: Callable[[int], float] = lambda step: 0.5,
    data_wait_s: float = 0.0,
    own_s: Sequence[float] = (),
    evaluations: Mapping[int, float] | None = None,
    noise: Callable[[int], float | None] = lambda step: None,
    wall_s: float = 36.0,
    finished: bool = True,
) -> None:
    """Writes a cell's run folder: half of the updates are stage 1.

    Args:
        target, source: final top-1, percent.
        step_s: seconds of the update with a number (from 1, over both stages).
        own_s: of each rank, in the latest updates; none = no ledger.
        evaluations: update -> top-1 on target/test; None = only the final one.
        noise: noise scale of an update; infinite where the squared gradient is not told from zero, None = no estimate.
    """
    run = cell.config.run.dir
    run.mkdir(parents=True)
    rows = list[dict[str, Any]]()
    scored = {updates: target, **(evaluations or {})}
    for step in range(1, updates + 1):
        first = updates // 2
        place = {"stage": 1 if step <= first else 2, "step": step if step <= first else step - first}
        place["global_step"] = step
        row = {"kind": "train", **place, "lr": 0.01, "step_s": step_s(step), "data_wait_s": data_wait_s}
        found = noise(step)
        is_told = found is not None and math.isfinite(found)
        noise_row = {"noise_scale": found if is_told else None, "noise_trace": None, "noise_grad2": None}
        if found is not None:
            noise_row |= {"noise_trace": 2 * found if is_told else 2.0, "noise_grad2": 2.0 if is_told else -1.0}
        rows.append({**row, **noise_row})
        if step in scored:
            rows.append({"kind": "eval", **place, "set": "target/test", "top1": scored[step], "seconds": 1.0})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "config.yaml").write_text(dump_config(cell.config))
    if own_s:
        hosts = tuple(f"mn{rank}" for rank in range(len(own_s)))
        own = {"own_s": tuple(own_s), "recent_s": tuple(own_s), "hosts": hosts, "ranks": len(own_s)}
        useful = sum(step_s(step) for step in range(1, updates + 1))
        seen = 100.0 + wall_s
        append_row(run, StartRow(start="a", begun=100.0, seen=seen, steps=updates, useful_s=useful, **own))  # type: ignore[arg-type]
    if finished:
        (run / "result.json").write_text(json.dumps(_result(target, source, updates, wall_s, cell)))


def _result(target: float, source: float, updates: int, wall_s: float, cell: Cell) -> dict[str, Any]:
    sets = {"target/test": target, "source/test": source}
    return {
        "method": "mmsada",
        "seed": cell.seed,
        "chance": 12.5,
        "steps": updates,
        "seconds": wall_s,
        "world_size": cell.ranks,
        "target_top1": target,
        "source_top1": source,
        "evaluations": {name: {"top1": top1, "segments": SEGMENTS} for name, top1 in sets.items()},
    }
