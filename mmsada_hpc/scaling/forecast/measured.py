"""What the rows of `mmsada bench --json FILE` tell about a cluster: its links, its steps, its decoding."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mmsada_hpc.bench.compare import Measured, read_rows
from mmsada_hpc.errors import UserError
from mmsada_hpc.scaling.forecast.compute import Compute
from mmsada_hpc.scaling.forecast.engines import SILENT
from mmsada_hpc.scaling.forecast.fitting import Array, fit
from mmsada_hpc.scaling.forecast.forecast import Inputs, Known
from mmsada_hpc.scaling.forecast.hardware import DRAWS
from mmsada_hpc.scaling.forecast.loader import clips_ceiling
from mmsada_hpc.scaling.forecast.nets import full_size
from mmsada_hpc.scaling.forecast.network import FREE, Algorithm, Link, Network, Team
from mmsada_hpc.scaling.forecast.stragglers import spread_of_range

_CORES = re.compile(r"\b(\d+) cores\b")
_FULL = re.compile(r"fused (?:bf16|fp32) \d+x16x224\^2$")
_FEWEST = 2
_START = (1e-4, 1e-9)
"""Seconds of latency, seconds a byte: where a fit begins."""
_WANTED = {
    "comm --part all-reduce": "how fast the links are",
    "step": "how long a step of the full network computes",
}


@dataclass(frozen=True)
class Reduced:
    """One measured all-reduce."""

    size: int
    """Bytes."""
    team: Team
    seconds: float


@dataclass(frozen=True)
class Links:
    """A fitted network, and others that the rows allow."""

    best: Network
    draws: Sequence[Network]
    source: str
    measured: tuple[str, ...]
    """Of `inside` and `between`; the class that was not has the other's figures."""

    def over(self, base: Network, ours: Network) -> Network:
        """`base` with those classes of `ours` that were measured."""
        if len(self.measured) == 2:
            return ours
        return replace(base, **{name: getattr(ours, name) for name in self.measured})


@dataclass(frozen=True)
class Figure:
    """One measured quantity."""

    value: float
    spread: float
    """Standard deviation, relative."""
    source: str


def read_all(paths: Iterable[Path]) -> list[Measured]:
    """Every row with a figure; the newest of a measurement within a file.

    Raises:
        UserError: a file is not what a benchmark writes.
    """
    return [one for path in paths for one in read_rows(path).values() if one.has_figure]


def known_of(rows: Sequence[Measured], base: Known | None, *, cores: int | None = None, seed: int = 0) -> Known:
    """What the rows tell, and from `base` (public figures) what they do not.

    Args:
        cores: of a node, where it has others than were measured on.

    Raises:
        UserError: neither has what a forecast needs; names the benchmark.
    """
    links, compute, loader = links_of(rows, seed=seed), compute_of(rows), loader_of(rows, cores=cores)
    found, rng = base or _from_rows_alone(links, compute), np.random.default_rng(seed)
    if links is not None:
        best = links.over(base.best.network, links.best) if base else links.best
        several = [
            replace(one, network=links.over(one.network, ours) if base else ours)
            for one, ours in zip(found.draws, links.draws, strict=True)
        ]
        found = _with(found, replace(found.best, network=best), several, links.measured, links.source)
    if compute is not None:
        of, spread, source = compute
        factors = np.exp(spread * rng.standard_normal(len(found.draws)))
        several = [replace(one, compute=of.times(float(f))) for one, f in zip(found.draws, factors, strict=True)]
        found = _with(found, replace(found.best, compute=of), several, ("compute",), source)
    if loader is not None:
        factors = loader.value * np.exp(loader.spread * rng.standard_normal(len(found.draws)))
        several = [replace(one, ceiling=float(f)) for one, f in zip(found.draws, factors, strict=True)]
        found = _with(found, replace(found.best, ceiling=loader.value), several, ("loader",), loader.source)
    return found


def _from_rows_alone(links: Links | None, compute: tuple[Compute, float, str] | None) -> Known:
    if links is None or compute is None:
        missing = "comm --part all-reduce" if links is None else "step"
        raise UserError(
            f"--rows: nothing tells {_WANTED[missing]}: `mmsada bench {missing} --json FILE`, or --hardware FILE"
        )
    inputs = Inputs(full_size(), compute[0], links.best)
    return Known(inputs, [inputs] * DRAWS, [])


def _with(known: Known, best: Inputs, draws: Sequence[Inputs], parts: Sequence[str], source: str) -> Known:
    """With what was measured in place of the public figures of those parts."""
    kept = [line for line in known.sources if not line.startswith(tuple(f"{part}:" for part in parts))]
    return Known(best, draws, [*kept, source])


def links_of(rows: Sequence[Measured], *, seed: int = 0) -> Links | None:
    """Of the all-reduces of equal teams, by NCCL where it was measured, else gloo, else MPI; None where there are none.

    Raises:
        UserError: of too few sizes.
    """
    found: dict[str, list[Reduced]] = {}
    for one in rows:
        told = one.row.details
        if one.row.bench != "comm" or "busbw_GB_s" not in told:
            continue
        nodes = len(set(told["hosts"]))
        per_node, rest = divmod(len(told["ranks"]), nodes)
        if not rest and len(told["ranks"]) > 1:
            reduced = Reduced(told["bytes"], Team(nodes, per_node), one.row.value / 1000)
            found.setdefault(told["way"], []).append(reduced)
    for way in ("nccl", "gloo", "MPI"):
        if way in found:
            return fit_links(found[way], way, seed=seed)
    return None


def fit_links(reduced: Sequence[Reduced], way: str, *, seed: int = 0) -> Links:
    """Latency and time a byte of both classes of link; where only one was measured, both are it.

    Raises:
        UserError: of too few sizes.
    """
    sizes = len({one.size for one in reduced})
    if sizes < _FEWEST:
        raise UserError(
            f"--rows: all-reduce of {sizes} message size by {way} is too few to tell latency from bandwidth; "
            "run `mmsada bench comm --part all-reduce --json FILE` with its own sizes"
        )
    inside, between = (any(getattr(one.team, name) > 1 for one in reduced) for name in ("per_node", "nodes"))
    classes = (*(["inside"] if inside else []), *(["between"] if between else []))
    several = len(classes) == 2
    algorithm: Algorithm = "gloo" if way == "gloo" else "auto"

    def network(values: Array) -> Network:
        links = [Link(*map(float, pair)) for pair in np.reshape(values, (-1, 2))]
        return Network(between=links[0], inside=links[-1] if several else links[0], algorithm=algorithm)

    def model(values: Array) -> list[float]:
        of = network(values)
        return [of.all_reduce_s(one.size, one.team) for one in reduced]

    found = fit(model, [one.seconds for one in reduced], _START * (1 + several))
    rng = np.random.default_rng(seed)
    wobble = np.exp(found.residual * rng.standard_normal(DRAWS))
    draws = [network(values * factor) for values, factor in zip(found.draw(DRAWS, rng), wobble, strict=True)]
    shapes = " and ".join(dict.fromkeys(_words(one.team) for one in reduced))
    error = f"{100 * found.residual:.0f} % about the fit"
    best = network(found.values)
    parts = ", ".join(f"{name} {_told(getattr(best, name))}" for name in classes)
    source = f"links: {parts}: {len(reduced)} all-reduces by {way} on {shapes}, {error}"
    return Links(best, draws, source if several else f"{source}; no others were measured", classes)


def _words(team: Team) -> str:
    return f"{team.ranks} ranks on {team.nodes} node{'s' * (team.nodes > 1)}"


def _told(link: Link) -> str:
    rate = f"{1e-9 / link.per_byte:.3g} GB/s" if link != FREE and link.per_byte else "no limit"
    return f"{1e6 * link.latency_s:,.0f} us and {rate}"


def compute_of(rows: Sequence[Measured]) -> tuple[Compute, float, str] | None:
    """Step time by micro-batch, the spread of the measurement, and its source; None where there is none.

    Of `bench step` the fused form of the full network, of `bench comm` the step without communication at full width;
    the quicker precision where two were measured. A repeat is one step or the mean of a few, so the ranks' spread from
    step to step is at least what is told here.
    """
    found: dict[int, list[tuple[float, float, str]]] = {}
    for one in rows:
        row = one.row
        if row.bench == "step" and _FULL.match(row.name):
            clips = int(row.details["clips"])
            seconds, low, high = clips / row.value, clips / row.max, clips / row.min
        elif row.bench == "comm" and row.details.get("engine") == SILENT and row.details.get("width") == 1.0:
            clips = int(row.details["clips_per_rank"])
            seconds, low, high = row.value / 1000, row.min / 1000, row.max / 1000
        else:
            continue
        spread = spread_of_range(low, seconds, high, row.repeats)
        found.setdefault(clips, []).append((seconds, spread, f"{row.name} {row.value:.3g} {row.unit}"))
    if not found:
        return None
    best = {clips: min(several) for clips, several in found.items()}
    spread = float(np.mean([spread for _, spread, _ in best.values()]))
    compute = Compute({clips: seconds for clips, (seconds, _, _) in best.items()}, spread)
    told = "; ".join(source for _, _, source in best.values())
    return compute, spread, f"compute: {told}; spread {100 * spread:.1f} %"


def loader_of(rows: Sequence[Measured], *, cores: int | None) -> Figure | None:
    """Clips/s of a node with `cores` (those that were measured, where it is None) by the quickest row of DALI."""
    best: tuple[float, int, Measured] | None = None
    for one in rows:
        match = _CORES.search(one.row.name)
        if one.row.bench == "loader" and one.row.unit == "clips/s" and one.row.name.startswith("DALI, ") and match:
            rate = one.row.value / int(match[1])
            if best is None or rate > best[0]:
                best = rate, int(match[1]), one
    if best is None:
        return None
    _, measured, one = best
    row = one.row
    ceiling = clips_ceiling(row.value, threads=cores or measured, measured_threads=measured)
    spread = spread_of_range(row.min, row.value, row.max, row.repeats)
    return Figure(ceiling, spread, f"loader: {row.name} {row.value:.3g} clips/s; {cores or measured} cores a node")
