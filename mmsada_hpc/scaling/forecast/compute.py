"""How long the computing of a step takes, by micro-batch, and on the slowest of many ranks."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from mmsada_hpc.scaling.forecast.stragglers import slowdown


@dataclass(frozen=True)
class Compute:
    """Of one rank."""

    seconds: Mapping[int, float]
    """Clips of a micro-batch -> forward, backward and update; at least one."""
    spread: float = 0.0
    """Standard deviation of a rank's time from update to update, relative to its mean, each rank on its own: the ranks
    wait for the slowest. What slows all ranks alike costs nothing here.
    """

    def mean_s(self, clips: int) -> float:
        """Seconds for `clips`: in proportion where one size is known, else on the line through two neighbours."""
        known = sorted(self.seconds)
        if len(known) == 1:
            return self.seconds[known[0]] * clips / known[0]
        above = next((size for size in known[1:] if size >= clips), known[-1])
        below = known[known.index(above) - 1]
        slope = (self.seconds[above] - self.seconds[below]) / (above - below)
        least_s = self.seconds[known[0]] * min(1.0, clips / known[0])  # a steep line must not lead below zero
        return max(least_s, self.seconds[below] + slope * (clips - below))

    def slowest_s(self, clips: int, ranks: int) -> float:
        """Expected time of the slowest of so many ranks."""
        return self.mean_s(clips) * slowdown(self.spread, ranks)

    def times(self, factor: float) -> "Compute":
        """All of it `factor` times as long."""
        return replace(self, seconds={clips: factor * seconds for clips, seconds in self.seconds.items()})
