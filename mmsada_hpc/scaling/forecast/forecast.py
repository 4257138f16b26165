"""A training step on any number of nodes, put together from its parts, with intervals from the parts' own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from mmsada_hpc.scaling.forecast.compute import Compute
from mmsada_hpc.scaling.forecast.engines import Engine, Gradient, Message, exposed
from mmsada_hpc.scaling.forecast.goodput import Failures, best_goodput
from mmsada_hpc.scaling.forecast.loader import loader_s
from mmsada_hpc.scaling.forecast.network import Network, Team

RECIPE_CLIPS = 9002 * 128
"""Of a run of table 1: updates of both stages times the global batch, as released."""
RECIPE_BATCH = 128
COVERED = 0.9
"""Share of the draws that an interval holds."""


@dataclass(frozen=True, eq=False)
class Traffic:
    """What a network sends; each is its own, which makes it a cheap key."""

    gradients: Sequence[Gradient]
    backward: float = 2 / 3
    """Share of a step's computing that is the backward."""
    agreed_bytes: float = 0.0
    """Of the small all-reduce of each step (`train/loop._agree`), without every rank's own seconds."""


@dataclass(frozen=True)
class Inputs:
    """What a forecast is made from; one set of figures."""

    traffic: Traffic
    compute: Compute
    network: Network
    ceiling: float | None = None
    """Clips/s that a node decodes; None = decoding is never waited for."""
    failures: Failures | None = None
    """None = there are none."""


@dataclass(frozen=True)
class Known:
    """What is known of a cluster: the figures, and others that they could as well be."""

    best: Inputs
    draws: Sequence[Inputs]
    sources: Sequence[str]
    """Where each part comes from, a line each."""


@dataclass(frozen=True)
class Plan:
    """What is run."""

    engine: Engine
    per_node: int
    """Ranks of a node."""
    micro_batch: int
    """Clips of a rank and step."""


@dataclass(frozen=True)
class Step:
    """One step, seconds by what they go to."""

    compute_s: float
    slowest_s: float
    """That the slowest rank computes longer than the mean."""
    exchange_s: float
    """Of gradients and weights, what the backward does not hide."""
    agree_s: float
    """Of the small all-reduce at the end."""
    loader_s: float
    """That decoding takes longer than all of the above."""

    @property
    def total_s(self) -> float:
        return self.compute_s + self.slowest_s + self.exchange_s + self.agree_s + self.loader_s


@dataclass(frozen=True)
class Span:
    """A figure and its interval, as far as the spread of what it is made from goes."""

    best: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """A number of nodes."""

    nodes: int
    ranks: int
    global_batch: int
    updates: int
    """For the clips of the recipe at this global batch."""
    step: Step
    step_s: Span
    efficiency: Span
    """Clips/s a node over those of one node: 1 is ideal."""
    goodput: Span
    """Share of the time that failures and checkpoints leave."""
    hours: Span
    """Of a run: its updates, over the goodput. Start, evaluations and the time in a queue are not in it."""


def step_of(inputs: Inputs, plan: Plan, nodes: int) -> Step:
    """One step on `nodes` nodes."""
    team, traffic, network = Team(nodes, plan.per_node), inputs.traffic, inputs.network
    compute_s = inputs.compute.mean_s(plan.micro_batch)
    longer_s = inputs.compute.slowest_s(plan.micro_batch, team.ranks) - compute_s
    exchange = exposed(_messages(plan.engine, traffic), network, team, backward_s=traffic.backward * compute_s)
    agreed = traffic.agreed_bytes + 4 * team.ranks if traffic.agreed_bytes else 0.0
    agree_s = network.all_reduce_s(agreed, team) if agreed else 0.0
    work_s = compute_s + longer_s + exchange.shown_s + agree_s
    decoding_s = loader_s(plan.micro_batch * plan.per_node, inputs.ceiling)
    return Step(compute_s, longer_s, exchange.shown_s, agree_s, max(0.0, decoding_s - work_s))


@cache
def _messages(engine: Engine, traffic: Traffic) -> Sequence[Message]:
    """Made once: the draws differ in what messages cost, not in which there are."""
    return tuple(engine.messages(traffic.gradients))


def goodput_of(inputs: Inputs, nodes: int) -> float:
    """Share of the time that is kept, with checkpoints at the best interval."""
    return best_goodput(inputs.failures, nodes)[0] if inputs.failures else 1.0


def clips_per_s(inputs: Inputs, plan: Plan, nodes: int) -> float:
    """That training keeps, of all nodes together."""
    clips = nodes * plan.per_node * plan.micro_batch
    return clips / step_of(inputs, plan, nodes).total_s * goodput_of(inputs, nodes)


def forecast(known: Known, plan: Plan, nodes: Sequence[int], *, clips: int = RECIPE_CLIPS) -> list[Row]:
    """A row for each number of nodes; `clips` is what a run sees."""
    return [_row(known, plan, count, clips) for count in nodes]


def _row(known: Known, plan: Plan, nodes: int, clips: int) -> Row:
    batch = nodes * plan.per_node * plan.micro_batch
    updates = max(1, math.ceil(clips / batch))
    draws = [_figures(one, plan, nodes, updates) for one in known.draws]
    best = _figures(known.best, plan, nodes, updates)
    spans = [_span(value, [draw[k] for draw in draws]) for k, value in enumerate(best)]
    return Row(nodes, nodes * plan.per_node, batch, updates, step_of(known.best, plan, nodes), *spans)


def _figures(inputs: Inputs, plan: Plan, nodes: int, updates: int) -> tuple[float, float, float, float]:
    """Step time, efficiency, goodput, hours."""
    one_s, many_s = (step_of(inputs, plan, count).total_s for count in (1, nodes))
    kept = goodput_of(inputs, nodes)
    return many_s, one_s / many_s, kept, updates * many_s / 3600 / kept if kept else math.inf


def _span(best: float, draws: Sequence[float]) -> Span:
    if not draws:
        return Span(best, best, best)
    ends = ((1 - COVERED) / 2, (1 + COVERED) / 2)
    low, high = np.quantile(np.array(draws), ends, method="nearest")  # no mean of a number and of infinity
    return Span(best, float(low), float(high))
