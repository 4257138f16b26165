"""The gradient noise scale of a run while it trains (McCandlish et al. 2018, arXiv 1812.06162, appendix A.1).

Let an update's gradient be the sum of K independent parts alike, G^ = c_1 + ... + c_K, each with mean G / K and the
trace of its covariance t. Then

    E |c_k|^2 = |G|^2 / K^2 + t        E |G^|^2 = |G|^2 + K t

so with s = K^2 |c|^2, the squared norm of a part scaled up to the whole (averaged over the parts that were measured),

    T = (s - |G^|^2) / (K - 1)         estimates K t, the trace of the covariance of G^,
    B T                                that of a clip's gradient, tr(Sigma), for B clips an update,
    |G^|^2 - T                         estimates |G|^2,

all without bias; with B_big = B and B_small = B / K they are the paper's two. Their ratio, each smoothed by itself, is
the simple noise scale B_simple: about the batch up to which more clips an update save updates.

What the parts are:

    mixed, several ranks     a rank's clips (K = ranks), by the norm before the gradients are averaged: every rank holds
                             as many clips of each domain, drawn alike.
    mixed, one rank          a micro-batch (K = accumulation); of the first alone, so that nothing is copied.
    domain-pure              a rank holds one domain, and the domains' gradients are no samples of one thing. But those
                             of a rank's micro-batches are: its A of them give T_r = (A^2 |c_1|^2 - |c_1 + ... + c_A|^2)
                             / (A - 1), the trace for its part, and as the clips are drawn apart, T = the sum of T_r
                             over all ranks. Needs A > 1 and an even number of ranks (else one holds both domains).

Where none of this holds, there is no estimate. A clip's noise includes that of its batch-norm group, and clips are
drawn without replacement, which makes T a little too small where a batch is a large share of its domain.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmsada_hpc.data.layout import BatchLayout

SMOOTHED_CLIPS = 2000
"""Both estimates are averaged with weights that fall by e over so many clips, whatever the batch."""
FIELDS = ("noise_scale", "noise_trace", "noise_grad2")
"""Of a training row: clips, and the two estimates of its update alone."""

Parts = Literal["ranks", "steps", "domains"]
_NOTHING = torch.tensor(math.nan, dtype=torch.float64)


def parts_of(layout: BatchLayout) -> Parts | None:
    """What the independent parts of an update are."""
    if layout.layout == "domain_pure":
        return "domains" if layout.accumulation > 1 and layout.world_size % 2 == 0 else None
    if layout.world_size > 1:
        return "ranks"
    return "steps" if layout.accumulation > 1 else None


class NoiseScale:
    """Estimates of a stage, update by update, and their smoothed ratio.

    Costs one norm of all gradients an update or, domain-pure, two. On several ranks it is taken in the hook of the
    gradient that comes last, when every `p.grad` is still the rank's own: DDP and `OverlappedAveraging` write the
    averages into them after the backward, DeepSpeed sends them after it. The first update shows which one comes last,
    as in `OwnTime`.

    Args:
        module: what is trained.
        parts: `parts_of(layout)`; None = no estimates.
    """

    def __init__(self, module: nn.Module, layout: BatchLayout, parts: Parts | None) -> None:
        self._layout, self._parts = layout, parts
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        heard = self._parameters if parts in ("ranks", "domains") else []
        self._hooks = {p: p.register_post_accumulate_grad_hook(self._hear) for p in heard}
        self._arrived, self._newest = 0, _NOTHING
        self._first2, self._own2 = _NOTHING, _NOTHING
        self._keep = math.exp(-layout.global_batch / SMOOTHED_CLIPS)
        self._trace = self._grad2 = 0.0

    def begin(self) -> None:
        """An update begins."""
        if self._arrived:
            for parameter in [p for p in self._hooks if p is not self._newest]:
                self._hooks.pop(parameter).remove()
        self._arrived, self._first2, self._own2 = 0, _NOTHING, _NOTHING

    def after_micro_batch(self, micro: int) -> None:
        """A backward is done."""
        if micro == 0 and self._parts in ("steps", "domains"):
            self._first2 = self._norm2()

    def share(self) -> Tensor:
        """This rank's share of s or, domain-pure, of T: shares add up over the ranks. `(1,)` float64, NaN where a
        gradient was missing; `(0,)` where there is no estimate.
        """
        # `p.grad` is scaled for an average over ranks: it is `ranks` times the rank's part of the sum.
        ranks, steps = self._layout.world_size, self._layout.accumulation
        if self._parts is None:
            return torch.empty(0, dtype=torch.float64)
        if self._parts == "ranks":
            return (self._own2 / ranks).reshape(1)
        if self._parts == "steps":
            return (steps**2 * self._first2).reshape(1)
        return ((steps**2 * self._first2 - self._own2) / (steps - 1) / ranks**2).reshape(1)

    def row(self, shares: Sequence[float], norm: float | None) -> dict[str, float | None]:
        """What an update's row says of it.

        Args:
            shares: `share` added up over the ranks.
            norm: of the averaged gradient; None = the engine has it in pieces.
        """
        if not shares or norm is None or not math.isfinite(shares[0] + norm**2):
            return dict.fromkeys(FIELDS)
        spread = shares[0]
        if self._parts != "domains":
            number = self._layout.world_size if self._parts == "ranks" else self._layout.accumulation
            spread = (spread - norm**2) / (number - 1)
        return self._follow(self._layout.global_batch * spread, norm**2 - spread)

    def replay(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Go on after the rows that a former start of this stage wrote."""
        for row in rows:
            trace, grad2 = row.get("noise_trace"), row.get("noise_grad2")
            if trace is not None and grad2 is not None:
                self._follow(trace, grad2)

    def close(self) -> None:
        """Take the hooks off the module."""
        for hook in self._hooks.values():
            hook.remove()

    def _follow(self, trace: float, grad2: float) -> dict[str, float | None]:
        # Both averages begin at 0 and lack the same factor at first, so their ratio lacks nothing.
        self._trace = self._keep * self._trace + (1 - self._keep) * trace
        self._grad2 = self._keep * self._grad2 + (1 - self._keep) * grad2
        scale = self._trace / self._grad2 if self._trace > 0 and self._grad2 > 0 else None
        return dict(zip(FIELDS, (scale, trace, grad2), strict=True))

    def _hear(self, parameter: Tensor) -> None:
        self._arrived, self._newest = self._arrived + 1, parameter
        if self._arrived == len(self._hooks) * self._layout.accumulation:
            self._own2 = self._norm2()

    @torch.no_grad()
    def _norm2(self) -> Tensor:
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        return torch.stack(torch._foreach_norm(gradients)).double().square().sum()
