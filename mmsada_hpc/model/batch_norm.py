"""Batch norm by law 2: statistics over groups of clips of one domain, running statistics per domain.

A forward in training normalises each group by its own mean and biased variance and adds both to a per-domain sum. Once
per update, after those sums were added up over all
ranks, `BatchNormState.update` moves the running statistics. So ranks never differ, and accumulation or recompute never
counts twice.
Sonnet's `BatchNorm` as MM-SADA uses it: offset, no scale, eps 1e-3 (spec 1.1, 1.6).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

EPS = 1e-3
SOURCE, TARGET = 0, 1


class GroupContext:
    """What the batch-norm layers of one model must know of the micro-batch at hand; one object, shared by all of
    them.
    """

    def __init__(self, *, group_size: int, test: Literal["mixture", "target"]) -> None:
        self.group_size = group_size
        self.test = test
        self.domains: tuple[int, ...] = ()
        self.recording = False

    def groups(self, clips: int) -> int:
        """How many groups a training micro-batch of whole ones has."""
        assert clips > 0 and clips % self.group_size == 0, f"{clips} clips are not whole groups of {self.group_size}"
        return clips // self.group_size

    @contextmanager
    def recorded(self, domains: Sequence[int]) -> Iterator[None]:
        """Record the statistics of a training forward; `domains` holds one domain per group. Recompute in the backward
        happens outside and is not recorded.
        """
        self.domains, self.recording = tuple(domains), True
        try:
            yield
        finally:
            self.recording = False


class GroupBatchNorm(nn.Module):
    """Normalises `(N, C, T, H, W)`, N whole groups in training; keeps the memory format."""

    running_mean_DC: Tensor
    running_var_DC: Tensor
    sum_DSC: Tensor
    groups_D: Tensor

    def __init__(self, channels: int, context: GroupContext) -> None:
        super().__init__()
        self.context = context
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean_DC", torch.zeros(2, channels))
        self.register_buffer("running_var_DC", torch.ones(2, channels))
        self.register_buffer("groups_D", torch.tensor([1.0, 0.0]))
        self.register_buffer("sum_DSC", torch.zeros(2, 2, channels), persistent=False)

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        if not self.training:
            mean, var = self.test_statistics()
            return nn.functional.batch_norm(
                x_NCTHW, mean, var, torch.ones_like(self.bias), self.bias, training=False, eps=EPS
            )
        parts = x_NCTHW.chunk(self.context.groups(len(x_NCTHW)))
        groups = [self._normalise(index, x) for index, x in enumerate(parts)]
        return groups[0] if len(groups) == 1 else torch.cat(groups)

    def _normalise(self, index: int, x_NCTHW: Tensor) -> Tensor:
        ones = torch.ones_like(self.bias)
        y, mean, inverse_std = torch.native_batch_norm(x_NCTHW, ones, self.bias, None, None, True, 0.0, EPS)
        if self.context.recording:
            self._add(self.context.domains[index], mean, inverse_std.pow(-2) - EPS)
        return y

    def record(self, mean_GC: Tensor, var_GC: Tensor) -> None:
        """Add the statistics of a forward that normalised elsewhere to this layer's sums, where they are recorded."""
        if self.context.recording:
            for domain, mean, var in zip(self.context.domains, mean_GC, var_GC, strict=True):
                self._add(domain, mean, var)

    @torch.no_grad()
    def _add(self, domain: int, mean: Tensor, var: Tensor) -> None:
        self.sum_DSC[domain] += torch.stack([mean, var])

    def test_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and variance, `(C,)` each: both domains weighted by their groups per update (as released), or the
        target's.
        """
        if self.context.test == "target":
            return self.running_mean_DC[TARGET], self.running_var_DC[TARGET]
        share_D1 = (self.groups_D / self.groups_D.sum())[:, None]  # no matrix product: autocast would take it to bf16
        return (share_D1 * self.running_mean_DC).sum(0), (share_D1 * self.running_var_DC).sum(0)


class BatchNormState:
    """All batch-norm layers of a model as one flat vector to add up over ranks; made when they are where they train.

    Statistics move by a few operators over all layers: one by one that took 2 % of an update of the demo.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self._layers = [m for m in model.modules() if isinstance(m, GroupBatchNorm)]
        self._decay = decay
        self._sums = [layer.sum_DSC for layer in self._layers]
        self._averages = torch.cat([sum_DSC.flatten() for sum_DSC in self._sums])
        parts = self._averages.split([sum_DSC.numel() for sum_DSC in self._sums])
        averages = [part.view_as(sum_DSC) for part, sum_DSC in zip(parts, self._sums, strict=True)]
        # Of each domain: mean and variance, layer by layer.
        self._averages_C = [[x_C for average_DSC in averages for x_C in average_DSC[d]] for d in (SOURCE, TARGET)]
        self._running_C = [
            [x_DC[d] for layer in self._layers for x_DC in (layer.running_mean_DC, layer.running_var_DC)]
            for d in (SOURCE, TARGET)
        ]

    def take_sums(self) -> Tensor:
        """This rank's sums since the last call, flat (about 58 k values for two I3Ds); the layers start anew."""
        flat = torch.cat([sum_DSC.flatten() for sum_DSC in self._sums])
        torch._foreach_zero_(self._sums)
        return flat

    @torch.no_grad()
    def update(self, total: Tensor, groups: tuple[int, int]) -> None:
        """Move both domains' running statistics by 1 - decay^G towards the average over all groups of the update.

        Args:
            total: `take_sums` added up over ranks.
            groups: source and target groups of the update, G = their sum.
        """
        rate = 1 - self._decay ** sum(groups)
        groups_D = total.new_tensor(groups)
        torch._foreach_copy_([layer.groups_D for layer in self._layers], [groups_D] * len(self._layers))
        self._averages.copy_(total)
        for domain, count in enumerate(groups):
            if count:
                torch._foreach_div_(self._averages_C[domain], float(count))
                torch._foreach_lerp_(self._running_C[domain], self._averages_C[domain], rate)
