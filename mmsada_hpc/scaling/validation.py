"""`mmsada scale validate STUDY`: what the forecast says of links, ranks and batches it was not fitted to, beside what
was measured there.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from mmsada_hpc.data.shards import writing
from mmsada_hpc.durable import write_atomically
from mmsada_hpc.scaling.forecast.shaped import Host, Reduced, fit_host
from mmsada_hpc.scaling.forecast.texts import ms, percent, table
from mmsada_hpc.scaling.validation_file import Validation, read_validation
from mmsada_hpc.scaling.validation_model import COVERED, Model, Predicted, fit_model, predict
from mmsada_hpc.scaling.validation_rows import Job, read_job, read_reduced

__all__ = ["Validation", "add_arguments", "read_validation", "run", "validate"]

HELP = (
    "Fit the forecast to the few cells that the file names, predict every other one, and print both beside what was "
    "measured (python -m tests.cluster.measure_links). Compute times are given to it, the network is not."
)


@dataclass(frozen=True)
class Outcome:
    """Everything that was predicted."""

    model: Model
    cells: tuple[Predicted, ...]

    @property
    def unseen(self) -> list[Predicted]:
        """Those that the model was not fitted to."""
        return [one for one in self.cells if not one.is_fitted]


def validate(validation: Validation) -> Outcome:
    """Fit and predict.

    Raises:
        UserError: a measurement is missing; says which.
    """
    jobs = [read_job(validation, cell) for cell in validation.cells]
    fitted = [job for job in jobs if validation.is_fitted(job.cell)]
    host = fit_host(_reduced(validation), cores=jobs[0].cores)
    model = fit_model(fitted, validation.links, host)
    cells = [_predict(validation, model, job) for job in jobs]
    return Outcome(model, tuple(one for of_job in cells for one in of_job))


def _reduced(validation: Validation) -> list[Reduced]:
    fit = validation.fit
    return [one for link in fit.links for ranks in fit.ranks for one in read_reduced(validation, link, ranks)]


def _predict(validation: Validation, model: Model, job: Job) -> list[Predicted]:
    return predict(job, model, validation.links[job.cell.link], is_fitted=validation.is_fitted(job.cell))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mmsada scale validate`."""
    add = parser.add_argument
    add("study", type=Path, metavar="STUDY", help="such as study/validation.yaml, a file or a name in configs/")
    add("--json", type=Path, metavar="FILE", help="every prediction with its measurement")
    add("--plot", type=Path, metavar="FILE", help="PNG: predicted against measured (an SVG goes beside it)")


def run(args: argparse.Namespace) -> int:
    """Print it; returns the exit status."""
    validation = read_validation(args.study)
    outcome = validate(validation)
    print("\n".join(describe(validation, outcome)))
    if args.json is not None:
        payload = json.dumps(as_json(outcome), indent=1) + "\n"
        writing(args.json, lambda: args.json.parent.mkdir(parents=True, exist_ok=True))
        writing(args.json, lambda: write_atomically(args.json, payload.encode()))
    if args.plot is not None:
        from mmsada_hpc.scaling.forecast.plots import plot_validation

        plot_validation(outcome.cells, args.plot)
    return 0


def describe(validation: Validation, outcome: Outcome) -> list[str]:
    """Parameters, every cell, and how good the forecast is where it was not fitted."""
    fit, unseen = validation.fit, outcome.unseen
    lines = [
        f"fitted to {', '.join(fit.links)} with {_listed(fit.ranks)} ranks and {_listed(fit.clips)} clips; "
        f"{len(unseen)} of {len(outcome.cells)} steps are predicted without having been seen",
        *_parameters(outcome.model),
        "",
        *table([_HEAD, *(_row(one) for one in outcome.cells)], left=4),
        "",
        *_summary("not seen", unseen),
    ]
    for words, chosen in _groups(validation, unseen).items():
        lines += _summary(words, chosen)
    return lines


_HEAD = ("link", "ranks", "clips", "engine", "compute ms", "measured", "predicted", "interval", "error", "")


def _row(one: Predicted) -> tuple[str, ...]:
    cell = one.job.cell
    interval = f"{ms(one.low_s)} - {ms(one.high_s)}"
    mark = "fitted" if one.is_fitted else "" if one.is_inside else "outside"
    numbers = (ms(one.job.compute.median_s), ms(one.measured_s), ms(one.step_s), interval)
    return (cell.link, str(cell.ranks), f"{cell.clips} {cell.precision}", one.engine, *numbers, _error(one.error), mark)


def _error(share: float) -> str:
    return f"{100 * share:+.1f} %"


def _parameters(model: Model) -> list[str]:
    host, spread = Host.of(model.host.values), model.host.spread
    own = ", ".join(f"{engine} {1000 * seconds:+.1f}" for engine, seconds in model.own_s.items())
    return [
        f"a message: {1e6 * host.latency_s:.0f} us (+- {percent(spread[0])}) and the link's delay; on the wire "
        f"{host.overhead:.3f} bytes a byte (+- {percent(spread[1])}); a core sends "
        f"{1e-9 / host.s_per_byte:.2f} GB/s (+- {percent(spread[2])}); all-reduces fit within "
        f"{percent(model.host.residual)}",
        f"an engine by itself, ms of an update: {own}; steps fit within {percent(model.residual)}",
    ]


def _summary(words: str, chosen: Sequence[Predicted]) -> list[str]:
    if not chosen:
        return []
    errors = [abs(one.error) for one in chosen]
    worst = max(chosen, key=lambda one: abs(one.error))
    inside = sum(one.is_inside for one in chosen)
    cell = worst.job.cell
    return [
        f"{words}: {len(chosen)} steps, error median {percent(median(errors))}, worst {_error(worst.error)} "
        f"({worst.engine}, {cell.link}, {cell.ranks} ranks, {cell.clips} clips); measured lies in the "
        f"{100 * COVERED:.0f} % interval {inside} times ({percent(inside / len(chosen))})"
    ]


def _groups(validation: Validation, unseen: Sequence[Predicted]) -> dict[str, list[Predicted]]:
    """By how far from the fit a prediction is, then by engine."""
    fit = validation.fit
    groups: dict[str, list[Predicted]] = {}
    for link in validation.links:
        where = "fitted link" if link in fit.links else "another link"
        groups[f"{link} ({where})"] = [one for one in unseen if one.job.cell.link == link]
    for ranks in validation.ranks:
        groups[f"{ranks} ranks"] = [one for one in unseen if one.job.cell.ranks == ranks]
    for engine in validation.engines:
        groups[engine] = [one for one in unseen if one.engine == engine]
    return groups


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def as_json(outcome: Outcome) -> dict[str, Any]:
    """For programs."""
    host, model = Host.of(outcome.model.host.values), outcome.model
    return {
        "host": {**vars(host), "spread": [float(value) for value in model.host.spread]},
        "all_reduce_residual": model.host.residual,
        "own_s": dict(model.own_s),
        "step_residual": model.residual,
        "cells": [_cell_json(one) for one in outcome.cells],
    }


def _cell_json(one: Predicted) -> dict[str, Any]:
    kept = ("engine", "measured_s", "step_s", "low_s", "high_s", "is_fitted", "error", "is_inside")
    return {**vars(one.job.cell), "compute_s": one.job.compute.median_s, **{name: getattr(one, name) for name in kept}}
