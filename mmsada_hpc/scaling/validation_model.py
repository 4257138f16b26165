"""The forecast of a step on a shaped link: the compute time that was measured beside it, what the engine itself costs,
and the network, of which only the fit cells were seen.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean

import numpy as np

from mmsada_hpc.scaling.forecast.engines import Message, exposed, find_engine
from mmsada_hpc.scaling.forecast.fitting import Array, Fit
from mmsada_hpc.scaling.forecast.network import Team
from mmsada_hpc.scaling.forecast.readiness import gradients_of
from mmsada_hpc.scaling.forecast.shaped import Host, contention
from mmsada_hpc.scaling.forecast.stragglers import spread_of_range
from mmsada_hpc.scaling.validation_file import LinkShape, Precision
from mmsada_hpc.scaling.validation_rows import Job

DRAWS, SEED, COVERED = 400, 0, 0.9
"""Of an interval: how many forecasts, their seed, and the share of them that is in it."""


@dataclass(frozen=True)
class Model:
    """What was fitted."""

    host: Fit
    own_s: Mapping[str, float]
    """Of each engine: seconds of a core for an update, beside the step without communication and the network. What
    flattening, copies and another memory format cost; may be negative.
    """
    residual: float
    """Standard deviation of the fitted steps about the model, relative."""
    freedom: int
    """Fitted steps without those that `own_s` took."""


@dataclass(frozen=True)
class Predicted:
    """One engine in one job, seconds."""

    job: Job
    engine: str
    measured_s: float
    step_s: float
    low_s: float
    high_s: float
    is_fitted: bool

    @property
    def error(self) -> float:
        """Of the prediction, relative."""
        return self.step_s / self.measured_s - 1

    @property
    def is_inside(self) -> bool:
        return self.low_s <= self.measured_s <= self.high_s


def shown_s(job: Job, engine: str, host: Host, shape: LinkShape) -> float:
    """Of an engine's communication, what a step shows."""
    _, share = gradients_of(width=job.width, frames=job.frames, side=job.side)
    messages = _messages(engine, job.cell.precision, job.width, job.frames, job.side)
    network = host.network(shape, job.cell.ranks, cores=job.cores)
    team = Team(job.cell.ranks)
    return exposed(messages, network, team, backward_s=share * job.compute.median_s).shown_s


@cache
def _messages(engine: str, precision: Precision, width: float, frames: int, side: int) -> Sequence[Message]:
    """Made once: the draws differ in what messages cost, not in which there are."""
    gradients, _ = gradients_of(width=width, frames=frames, side=side)
    return tuple(find_engine(engine, precision=precision).messages(gradients))


def fit_model(jobs: Sequence[Job], shapes: Mapping[str, LinkShape], host: Fit) -> Model:
    """What each engine costs by itself, from the jobs of the fit cells."""
    at = Host.of(host.values)
    rest: dict[str, list[float]] = {}
    for job in jobs:
        for engine, step in job.steps.items():
            rest_s = step.median_s - job.compute.median_s - shown_s(job, engine, at, shapes[job.cell.link])
            rest.setdefault(engine, []).append(rest_s / contention(job.cell.ranks, job.cores))
    own_s = {engine: fmean(values) for engine, values in rest.items()}
    errors = [
        math.log(_step_s(job, engine, at, own_s, shapes[job.cell.link]) / step.median_s)
        for job in jobs
        for engine, step in job.steps.items()
    ]
    freedom = max(1, len(errors) - len(own_s))
    return Model(host, own_s, math.sqrt(sum(error**2 for error in errors) / freedom), freedom)


def _step_s(job: Job, engine: str, host: Host, own_s: Mapping[str, float], shape: LinkShape) -> float:
    share = contention(job.cell.ranks, job.cores)
    step_s = job.compute.median_s + own_s[engine] * share + shown_s(job, engine, host, shape)
    return max(step_s, 1e-6)


def predict(job: Job, model: Model, shape: LinkShape, *, is_fitted: bool) -> list[Predicted]:
    """Every engine of a job, with the interval that the spread of the parameters, of the compute time and of the fit
    makes.
    """
    rng = np.random.Generator(np.random.PCG64(SEED))
    hosts = [Host.of(values) for values in model.host.draw(DRAWS, rng)]
    wobble = _compute_spread(job) * rng.standard_normal(DRAWS)
    found = []
    for engine, step in job.steps.items():
        middle = _step_s(job, engine, Host.of(model.host.values), model.own_s, shape)
        fixed = middle - shown_s(job, engine, Host.of(model.host.values), shape)
        network = np.array([shown_s(job, engine, host, shape) for host in hosts])
        drawn = (fixed + network + wobble * job.compute.median_s) * np.exp(_residuals(model, rng))
        low, high = np.quantile(drawn, [(1 - COVERED) / 2, (1 + COVERED) / 2])
        found.append(Predicted(job, engine, step.median_s, middle, float(low), float(high), is_fitted))
    return found


def _compute_spread(job: Job) -> float:
    """Standard error of the compute time, relative."""
    one = job.compute
    return spread_of_range(one.min_s, one.median_s, one.max_s, one.repeats) / math.sqrt(max(1, one.repeats))


def _residuals(model: Model, rng: np.random.Generator) -> Array:
    """Student's t: the spread itself is known from few steps."""
    return np.asarray(model.residual * rng.standard_t(model.freedom, DRAWS))
