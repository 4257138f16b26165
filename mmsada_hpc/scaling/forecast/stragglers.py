"""The slowest of many: what an update takes where every rank waits for the last one.

Normal order statistics: the expected maximum of n values that vary independently by one standard deviation, from the
quantiles of the normal distribution. What all ranks have in common (a slow file system, a hot rack) adds nothing to it.
"""

import math
from collections.abc import Sequence
from functools import cache
from statistics import NormalDist

import numpy as np

_POINTS = 4000


@cache
def expected_maximum(ranks: int) -> float:
    """Of so many standard normal values: 0, 0.564, 0.846, 1.029 ... for 1, 2, 3, 4."""
    if ranks == 1:
        return 0.0
    inverse = NormalDist().inv_cdf
    shares = ((k + 0.5) / _POINTS for k in range(_POINTS))
    # The upper end is where the maximum of many lies: 1 - u^(1/n) without losing its digits.
    return sum(-inverse(-math.expm1(math.log(share) / ranks)) for share in shares) / _POINTS


def slowdown(spread: float, ranks: int, *, shared: float = 0.0) -> float:
    """How many times longer than one rank's mean the slowest of `ranks` takes.

    Args:
        spread: standard deviation of one rank's time from update to update, relative to its mean.
        shared: the part of that variance which all ranks have in common, 0 ... 1.
    """
    return 1 + spread * math.sqrt(1 - shared) * expected_maximum(ranks)


def empirical_slowdown(seconds: Sequence[float], ranks: int) -> float:
    """The same from times of one rank: the expected maximum of `ranks` draws of them, so never more than the longest.
    For few ranks and many times.
    """
    ordered = np.sort(np.asarray(seconds, dtype=np.float64))
    edges = (np.arange(len(ordered) + 1) / len(ordered)) ** ranks
    return float(ordered @ np.diff(edges) / ordered.mean())


def spread_of_range(low: float, middle: float, high: float, count: int, *, updates: int = 1) -> float:
    """Standard deviation of an update relative to its mean, from the range of `count` means over `updates` each."""
    if count < 2 or middle <= 0:
        return 0.0
    return (high - low) / (2 * expected_maximum(count)) * math.sqrt(updates) / middle
