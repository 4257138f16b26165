"""`mmsada scale predict`: step time, efficiency and time of a run on nodes one does not have."""

import argparse
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmsada_hpc.data.shards import writing
from mmsada_hpc.errors import UserError
from mmsada_hpc.scaling.forecast import hardware, measured, published
from mmsada_hpc.scaling.forecast.changes import FASTER, bottleneck, changes
from mmsada_hpc.scaling.forecast.engines import find_engine
from mmsada_hpc.scaling.forecast.forecast import COVERED, RECIPE_BATCH, RECIPE_CLIPS, Known, Plan, Row, forecast
from mmsada_hpc.scaling.forecast.goodput import Failures
from mmsada_hpc.scaling.forecast.texts import ms, percent, table

HELP = (
    "Step time, efficiency, and the time of a run of table 1, from what was measured (--rows, the JSON lines of "
    "`mmsada bench comm`, `step` and `loader`), from public figures of a cluster (--hardware), or from both: what "
    "was measured counts."
)
_WORTH = 1.005
_NODES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_GROUP = 16
"""Clips of a batch-norm group as published (law 2)."""
_CHECKPOINT_S, _RESTART_S = 2.0, 300.0
"""Where only the time between failures is given."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mmsada scale predict`."""
    add = parser.add_argument
    add("--rows", nargs="+", type=Path, default=[], metavar="FILE", help="rows of `mmsada bench ... --json FILE`")
    add("--hardware", type=Path, metavar="FILE", help="public figures, such as h100_ib; none of them measured here")
    add("--nodes", nargs="+", type=int, default=list(_NODES), metavar="N", help="default 1, 2, 4 ... 4096")
    add("--ranks-per-node", type=int, metavar="N", help="default: as in --hardware, else 1")
    add("--cores", type=int, metavar="N", help="of a node for decoding, where not those of the loader's rows")
    add("--micro-batch", type=int, default=_GROUP, metavar="N", help="clips of a rank and step (default %(default)s)")
    add(
        "--engine",
        default="DeepSpeed stage 0 overlap",
        metavar="NAME",
        help="as `bench comm` names them, in bf16 (default %(default)s)",
    )
    add("--mtbf-hours", type=float, metavar="H", help="mean hours between failures of a node")
    add("--checkpoint-s", type=float, metavar="S", help="that training stands still for one")
    add("--restart-s", type=float, metavar="S", help="from a failure to training again")
    add("--json", type=Path, metavar="FILE", help="everything, for other programs")
    add("--plot", type=Path, metavar="FILE", help="a picture, .png or .svg")
    add("--published", action="store_true", help="what the model says of published scaling results, and stop")


def run(args: argparse.Namespace) -> int:
    """Print the table; write what was asked for."""
    if args.published:
        print(published.table())
        return 0
    known, per_node = _known(args)
    plan = _plan(args, per_node)
    rows = forecast(known, plan, args.nodes)
    print("\n".join(_lines(known, plan, rows)))
    if args.json is not None:
        text = json.dumps(_values(known, plan, rows), indent=1) + "\n"
        writing(args.json, lambda: args.json.write_text(text, encoding="utf-8"))
    if args.plot is not None:
        from mmsada_hpc.scaling.forecast.plots import plot_forecast

        plot_forecast(rows, args.plot)
    return 0


def _known(args: argparse.Namespace) -> tuple[Known, int]:
    if not args.rows and args.hardware is None:
        raise UserError(
            "scale predict needs figures: --rows FILE, of `mmsada bench comm|step|loader --json FILE`, or --hardware "
            "h100_ib"
        )
    if args.cores is not None and (args.cores < 1 or not args.rows):
        raise UserError(f"--cores {args.cores}: of the loader's rows (--rows), and at least 1")
    file = hardware.read_hardware(args.hardware) if args.hardware is not None else None
    known = hardware.known_of(file) if file is not None else None
    if args.rows:
        known = measured.known_of(measured.read_all(args.rows), known, cores=args.cores)
    assert known is not None
    here = file.ranks_per_node if file is not None else 1
    return _with_failures(known, args), here if args.ranks_per_node is None else args.ranks_per_node


def _with_failures(known: Known, args: argparse.Namespace) -> Known:
    options = {"mtbf-hours": args.mtbf_hours, "checkpoint-s": args.checkpoint_s, "restart-s": args.restart_s}
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"--{name} {value:g}: must be above 0")
    if not given:
        return known
    if known.best.failures is None and args.mtbf_hours is None:
        raise UserError(f"--{next(iter(given))} without --mtbf-hours: nothing else tells how often a node fails")

    def failing(old: Failures | None) -> Failures:
        old = old or Failures(math.inf, _CHECKPOINT_S, _RESTART_S)
        mtbf_s = 3600 * args.mtbf_hours if args.mtbf_hours else old.node_mtbf_s
        return Failures(mtbf_s, args.checkpoint_s or old.checkpoint_s, args.restart_s or old.restart_s)

    best = dataclasses.replace(known.best, failures=failing(known.best.failures))
    draws = [dataclasses.replace(one, failures=failing(one.failures)) for one in known.draws]
    at = best.failures
    assert at is not None
    told = (
        f"{', '.join(f'--{name} {value:g}' for name, value in given.items())}: {at.checkpoint_s:g} s a checkpoint and "
        f"{at.restart_s:g} s a restart, assumed where not given"
    )
    kept = [line for line in known.sources if not line.startswith("failures:")]
    return Known(best, draws, [*kept, f"failures: {told}"])


def _plan(args: argparse.Namespace, per_node: int) -> Plan:
    for name, values in {"nodes": args.nodes, "ranks-per-node": [per_node], "micro-batch": [args.micro_batch]}.items():
        for value in values:
            if value < 1:
                raise UserError(f"--{name} {value}: must be at least 1")
    if args.micro_batch % _GROUP:
        near = max(_GROUP, args.micro_batch // _GROUP * _GROUP)
        raise UserError(f"--micro-batch {args.micro_batch}: batch-norm groups are of {_GROUP} clips; take {near}")
    return Plan(find_engine(args.engine, precision="bf16"), per_node, args.micro_batch)


def _lines(known: Known, plan: Plan, rows: Sequence[Row]) -> list[str]:
    engine = f"{plan.engine.name}, gradients in {plan.engine.gradients}"
    return [
        f"two-stream I3D and MM-SADA, {plan.per_node} ranks a node, {plan.micro_batch} clips a rank, {engine}",
        *(f"  {line}" for line in known.sources),
        f"  a run: {RECIPE_CLIPS:,} clips (9,002 updates of {RECIPE_BATCH}); start, evaluations and queues not counted",
        f"  intervals: {100 * COVERED:.0f} % of {len(known.draws)} draws of these figures",
        "",
        *table([_HEAD, *(_cells(known, plan, row) for row in rows)], left=0, last=2),
        *_about_batch(plan, rows),
    ]


_HEAD = (
    *("nodes", "ranks", "batch", "updates", "ms a step", "", "efficiency", "", "kept", "a run", ""),
    *("beside computing", "what would help most"),
)


def _cells(known: Known, plan: Plan, row: Row) -> tuple[str, ...]:
    best = next(one for one in changes(known.best, plan, row.nodes) if one.name != FASTER)
    helps = f"{best.name} {best.gain:.2f}x" if best.gain >= _WORTH else "nothing"
    counts = (f"{row.nodes:,}", f"{row.ranks:,}", f"{row.global_batch:,}", f"{row.updates:,}")
    step, share, run = row.step_s, row.efficiency, row.hours
    return (
        *counts,
        ms(step.best),
        f"{ms(step.low)} - {ms(step.high)}",
        percent(share.best),
        f"{percent(share.low)} - {percent(share.high)}",
        percent(row.goodput.best),
        _time(run.best),
        f"{_time(run.low)} - {_time(run.high)}",
        bottleneck(row),
        helps,
    )


def _time(hours: float) -> str:
    """Hours as a person reads them: 41 s, 12 min, 3.4 h, 2.1 d."""
    if not math.isfinite(hours):
        return "never"
    for least, times, unit in ((48.0, 1 / 24, "d"), (1.0, 1.0, "h"), (1 / 60, 60.0, "min")):
        if hours >= least:
            return f"{hours * times:.3g} {unit}"
    return f"{hours * 3600:.2g} s"


def _about_batch(plan: Plan, rows: Sequence[Row]) -> list[str]:
    """Where the published batch ends."""
    if not any(row.global_batch > RECIPE_BATCH for row in rows):
        return []
    return [
        "",
        f"The published batch of {RECIPE_BATCH} is {RECIPE_BATCH // _GROUP} batch-norm groups of {_GROUP} clips, one a "
        "rank at least.",
        f"More ranks mean a larger batch, {plan.micro_batch} clips a rank, and fewer updates for the same clips; what",
        "that does to accuracy a study tells (mmsada scale report).",
    ]


def _values(known: Known, plan: Plan, rows: Sequence[Row]) -> dict[str, Any]:
    """Never infinite: JSON has no such number, so it is null."""
    found = []
    for row in rows:
        values = dataclasses.asdict(row)
        values["changes"] = [dataclasses.asdict(one) for one in changes(known.best, plan, row.nodes)]
        values["bottleneck"] = bottleneck(row)
        found.append(_finite(values))
    return {"plan": dataclasses.asdict(plan), "sources": list(known.sources), "rows": found}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
