"""Rows of all ranks, with gradients: for losses that are no sum over clips."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Ranks that have come together; 1 where none have."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather_rows(x_ND: Tensor) -> Tensor:
    """`(ranks * N, ...)`: every rank's rows in the order of ranks; the gradient comes back to the rank of each row.

    A collective, in the backward too: every rank calls it, and lets what it returns enter its loss.
    """
    if world_size() == 1:
        return x_ND
    gathered: Tensor = _GatherRows.apply(x_ND)
    return gathered


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor) -> Tensor:
        ctx.rows = len(x_ND)
        parts = [torch.empty_like(x_ND) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x_ND.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # An all-reduce, as gloo has no reduce-scatter; a few MB at most.
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total[dist.get_rank() * ctx.rows : (dist.get_rank() + 1) * ctx.rows]
