"""Links of a known rate and delay between nodes that share one machine's cores: what the host adds to them is fitted,
so that other rates, delays and numbers of ranks can be predicted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmsada_hpc.scaling.forecast.fitting import Array, Fit, fit
from mmsada_hpc.scaling.forecast.network import Link, Network, Team
from mmsada_hpc.scaling.validation_file import LinkShape

_START = (1e-4, 1.05, 1e-10)
_TRIPS = 2
"""Of a message over the link: gloo sends it once its receiver has said that it waits for it (transport/tcp/pair.cc)."""


@dataclass(frozen=True)
class Host:
    """What a machine adds to a shaped link."""

    latency_s: float
    """Of a message, beside the link's delay."""
    overhead: float
    """Bytes on the wire for each byte of a message."""
    s_per_byte: float
    """Of a core, for each byte that a rank sends: copies, sums, TCP."""

    @classmethod
    def of(cls, values: Array) -> "Host":
        return cls(*map(float, values))

    def network(self, shape: LinkShape, ranks: int, *, cores: int) -> Network:
        """gloo between `ranks` nodes of one rank each; where they have fewer cores, each has its share of them."""
        share = contention(ranks, cores)
        wire = self.overhead * 8 / (shape.rate_mbit * 1e6)
        latency_s = self.latency_s * share + _TRIPS * shape.delay_ms / 1000
        return Network(Link(latency_s, wire, self.s_per_byte * share), algorithm="gloo")


def contention(ranks: int, cores: int) -> float:
    """How many ranks of one thread share a core."""
    return max(1.0, ranks / cores)


@dataclass(frozen=True)
class Reduced:
    """One measured all-reduce."""

    shape: LinkShape
    ranks: int
    size: float
    """Bytes."""
    seconds: float


def fit_host(measured: Sequence[Reduced], *, cores: int) -> Fit:
    """The three numbers of a `Host`, by least squares of relative errors."""

    def model(values: Array) -> list[float]:
        host = Host.of(values)
        return [
            host.network(one.shape, one.ranks, cores=cores).all_reduce_s(one.size, Team(one.ranks)) for one in measured
        ]

    return fit(model, [one.seconds for one in measured], np.array(_START))
