"""The slowest of many: what an update takes where every rank waits for the last one.

Normal order statistics: the expected maximum of n values that vary independently by one standard deviation, from the
quantiles of the normal distribution. What all ranks have in common (a slow file system, a hot rack) adds nothing to it.
"""

import math
from functools import cache
from statistics import NormalDist

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


def slowdown(spread: float, ranks: int) -> float:
    """How many times longer than one rank's mean the slowest of `ranks` takes.

    Args:
        spread: standard deviation of one rank's time from update to update, relative to its mean.
    """
    return 1 + spread * expected_maximum(ranks)


def spread_of_range(low: float, middle: float, high: float, count: int) -> float:
    """Standard deviation relative to the mean, from the range of `count` values."""
    if count < 2 or middle <= 0:
        return 0.0
    return (high - low) / (2 * expected_maximum(count)) / middle
