"""What would help most: the forecast again, with one part made better."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from mmsada_hpc.scaling.forecast.engines import OVERLAPPED, SILENT, Engine
from mmsada_hpc.scaling.forecast.forecast import Inputs, Plan, Row, clips_per_s

FASTER = "computing twice as fast"
_LOSSES = {
    "slowest_s": "the slowest rank",
    "exchange_s": "gradients",
    "agree_s": "the small all-reduce of each step",
    "loader_s": "decoding",
}
_SHOWN = 0.01


@dataclass(frozen=True)
class Change:
    """One thing made better."""

    name: str
    gain: float
    """Times the clips/s that are kept now."""


def changes(inputs: Inputs, plan: Plan, nodes: int) -> list[Change]:
    """Every change there is for this plan, the best first; computing twice as fast last, which nearly always helps."""
    now = clips_per_s(inputs, plan, nodes)
    found = [
        Change(name, clips_per_s(other, its_plan, nodes) / now if now else 1.0)
        for name, other, its_plan in _candidates(inputs, plan)
    ]
    return sorted(found, key=lambda one: (one.name == FASTER, -one.gain))


def bottleneck(row: Row) -> str:
    """What the time goes to most beside computing, with its share; `computing` where that is under 1 %."""
    kept = row.goodput.best
    parts = {words: kept * getattr(row.step, name) / row.step.total_s for name, words in _LOSSES.items()}
    parts["failures"] = 1 - kept
    name = max(parts, key=lambda one: parts[one])
    return f"{name} {100 * parts[name]:.0f} %" if parts[name] >= _SHOWN else "computing"


def _candidates(inputs: Inputs, plan: Plan) -> Iterator[tuple[str, Inputs, Plan]]:
    engine, compute, network, failures = plan.engine, inputs.compute, inputs.network, inputs.failures
    if not engine.overlaps and engine.name != SILENT:
        yield OVERLAPPED, inputs, replace(plan, engine=Engine(OVERLAPPED, engine.gradients))
    if engine.gradients == "fp32" and engine.name != SILENT:
        yield "bf16 gradients", inputs, replace(plan, engine=replace(engine, gradients="bf16"))
    yield "twice the bandwidth", replace(inputs, network=network.scaled(per_byte=0.5)), plan
    yield "half the latency", replace(inputs, network=network.scaled(latency=0.5)), plan
    yield f"micro-batch {2 * plan.micro_batch}", inputs, replace(plan, micro_batch=2 * plan.micro_batch)
    if compute.spread:
        yield "ranks equally fast", replace(inputs, compute=replace(compute, spread=0.0)), plan
    if inputs.ceiling is not None:
        yield "decoding twice as fast", replace(inputs, ceiling=2 * inputs.ceiling), plan
    if failures is not None:
        shorter = replace(failures, checkpoint_s=failures.checkpoint_s / 2)
        yield "checkpoints of half the time", replace(inputs, failures=shorter), plan
        sooner = replace(failures, restart_s=failures.restart_s / 2)
        yield "restarts of half the time", replace(inputs, failures=sooner), plan
    yield FASTER, replace(inputs, compute=compute.times(0.5)), plan
