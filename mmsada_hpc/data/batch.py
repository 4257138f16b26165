"""One micro-batch as the model and the heads take it. N clips, T frames, H x W pixels, C channels, D features, L rows
of a stream of numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmsada_hpc.data.plan import ClipPlan
from mmsada_hpc.data.windows import Ints


@dataclass(frozen=True)
class Batch:
    """Source clips before target clips, whole batch-norm groups of one domain."""

    clips_NTHWC: Mapping[str, Tensor]
    """Per stream, float32 in [-1, 1), memory as DALI wrote it; `(N, L, C)` for a stream of numbers."""
    label_N: Tensor
    """int64; a target clip's label is there for the log alone and has weight 0."""
    domain_N: Tensor
    """int64, 0 source, 1 target."""
    corresponds_N: Tensor
    """bool, whether all streams come from one segment."""
    place_N: Tensor
    """int64, place in the domain's part of the global batch; 0 ... N - 1 at test."""
    weights: Mapping[str, Tensor]
    """Per loss term the weight of each clip (law 3), float64: 1 / count is exact to the engine's own precision."""
    dropout_SND: Mapping[str, Tensor]
    """Per stream the factors 0 or 1 / (1 - p) in front of the classifier; empty at test."""
    group_domains: tuple[int, ...]
    """Domain of each batch-norm group; empty at test."""

    def __len__(self) -> int:
        return len(self.label_N)


def make_batch(
    plan: ClipPlan,
    clips_NTHWC: Mapping[str, Tensor],
    *,
    dropout_SND: Mapping[str, Tensor] | None = None,
    group_size: int = 0,
    place_N: Ints | None = None,
) -> Batch:
    """Join a plan with its decoded clips, on the clips' device."""
    device = next(iter(clips_NTHWC.values())).device
    places = np.arange(len(plan)) if place_N is None else place_N

    def tensor(values: object, dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(values, dtype=dtype).to(device, non_blocking=True)

    return Batch(
        clips_NTHWC=clips_NTHWC,
        label_N=tensor(plan.label_N, torch.int64),
        domain_N=tensor(plan.domain_N, torch.int64),
        corresponds_N=tensor(plan.corresponds_N, torch.bool),
        place_N=tensor(places, torch.int64),
        weights={term: tensor(weight, torch.float64) for term, weight in plan.weights.items()},
        dropout_SND={stream: mask.to(device, non_blocking=True) for stream, mask in (dropout_SND or {}).items()},
        group_domains=tuple(plan.domain_N[::group_size].tolist()) if group_size else (),
    )
