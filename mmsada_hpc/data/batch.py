"""One micro-batch as the model and the heads take it. N clips, T frames, H x W pixels, C channels, D features."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmsada_hpc.data.plan import ClipPlan


@dataclass(frozen=True)
class Batch:
    """Source clips before target clips, whole batch-norm groups of one domain."""

    clips_NTHWC: Mapping[str, Tensor]
    """Per stream, float32 in [-1, 1); memory as DALI wrote it."""
    label_N: Tensor
    """int64; a target clip's label is there for the log alone and has weight 0."""
    domain_N: Tensor
    """int64, 0 source, 1 target."""
    corresponds_N: Tensor
    """bool, whether RGB and flow come from one segment."""
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
) -> Batch:
    """Join a plan with its decoded clips, on the clips' device."""
    device = next(iter(clips_NTHWC.values())).device

    def tensor(values: object, dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(values, dtype=dtype).to(device, non_blocking=True)

    return Batch(
        clips_NTHWC=clips_NTHWC,
        label_N=tensor(plan.label_N, torch.int64),
        domain_N=tensor(plan.domain_N, torch.int64),
        corresponds_N=tensor(plan.corresponds_N, torch.bool),
        weights={term: tensor(weight, torch.float64) for term, weight in plan.weights.items()},
        dropout_SND={stream: mask.to(device, non_blocking=True) for stream, mask in (dropout_SND or {}).items()},
        group_domains=tuple(plan.domain_N[::group_size].tolist()) if group_size else (),
    )
