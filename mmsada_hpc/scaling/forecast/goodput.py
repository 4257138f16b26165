"""What failures and checkpoints leave of the time: J. T. Daly, A higher order estimate of the optimum checkpoint
interval for restart dumps, Future Generation Computer Systems 22 (2006). Failures come one by one at a constant rate.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Failures:
    """How often a node fails, and what a failure and a checkpoint cost; seconds."""

    node_mtbf_s: float
    """Mean time between failures of one node; inf = none."""
    checkpoint_s: float
    """That training stands still for one."""
    restart_s: float
    """From a failure until the last checkpoint is loaded and training goes on."""

    def mtbf_s(self, nodes: int) -> float:
        """Of all nodes together."""
        return self.node_mtbf_s / nodes


def young_interval_s(checkpoint_s: float, mtbf_s: float) -> float:
    """Young's first order (1974): training between two checkpoints."""
    return math.sqrt(2 * checkpoint_s * mtbf_s)


def daly_interval_s(checkpoint_s: float, mtbf_s: float) -> float:
    """Daly's equation 37; the time between failures where a checkpoint takes twice as long or longer."""
    if checkpoint_s >= 2 * mtbf_s:
        return mtbf_s
    ratio = checkpoint_s / (2 * mtbf_s)
    return young_interval_s(checkpoint_s, mtbf_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - checkpoint_s


def goodput(interval_s: float, failures: Failures, nodes: int) -> float:
    """Share of the time that is training which is kept, with a checkpoint every `interval_s` of it (Daly's equation 20,
    turned round).
    """
    mean_s, period_s = failures.mtbf_s(nodes), interval_s + failures.checkpoint_s
    if math.isinf(mean_s):
        return interval_s / period_s
    lost = (period_s + failures.restart_s) / mean_s
    if lost > 500:
        return 0.0
    return interval_s / (mean_s * math.exp(failures.restart_s / mean_s) * math.expm1(period_s / mean_s))


def best_goodput(failures: Failures, nodes: int) -> tuple[float, float]:
    """The goodput at Daly's interval, and that interval in seconds."""
    mean_s = failures.mtbf_s(nodes)
    if math.isinf(mean_s):
        return 1.0, math.inf
    interval_s = daly_interval_s(failures.checkpoint_s, mean_s)
    return goodput(interval_s, failures, nodes), interval_s
