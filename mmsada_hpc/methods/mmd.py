"""MMD: multi-kernel maximum mean discrepancy between the domains' features, per stream (spec 6.2).

    L = s * (L_y + lambda_mmd * sum_m MMD^2_m),   MMD^2 = mean K_ss + mean K_tt - 2 mean K_st   (biased V-statistic)

K is the sum of 12 fixed RBF kernels, as released; `mmd_kernels=median` takes five around the median squared distance
instead. No ramp, no normalisation of the features; stage 1, which the release does not document for MMD, has none.

MMD is not a sum over clips, so it is a mean over blocks of `mmd_block` source and as many target clips: rows j *
mmd_block ... of each domain's part of the global batch, whatever the ranks. A block that lies on several ranks is
gathered with its gradients; one that would be spread over accumulation steps is refused.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmsada_hpc.config import Config
from mmsada_hpc.data.batch import Batch
from mmsada_hpc.data.layout import BatchLayout
from mmsada_hpc.errors import UserError
from mmsada_hpc.methods.base import ClipWeights, Factors, Features, Method, Moment, register, share
from mmsada_hpc.methods.gather import gather_rows, world_size
from mmsada_kernels import Scored, wide

# g of exp(-||x - y||^2 / g): 9.7 * 2^a for a = -8, -8 + sqrt 2, ... below 8.
FIXED_SCALES = tuple(9.7 * 2.0**a for a in np.arange(-8.0, 8.0, np.sqrt(2.0)))
MEDIAN_POWERS = (-2, -1, 0, 1, 2)


@register("mmd")
class Mmd(Method):
    """No head beside the classifier."""

    @staticmethod
    def weigh(domain_N: NDArray[np.int64], corresponds_N: NDArray[np.bool_]) -> ClipWeights:
        return {"ce": share(domain_N == 0), "mmd": share(domain_N >= 0)}

    def factors(self, at: Moment) -> Factors:
        mmd = at.scale * self.settings.lambda_mmd * at.adapts
        return Factors({"ce": at.scale, **{f"mmd_{stream}": mmd for stream in self.streams}})

    def terms(self, features: Features, batch: Batch, reversal: Tensor) -> Mapping[str, Scored]:
        blocks = Blocks(batch, self.settings.mmd_block)
        use_median = self.settings.mmd_kernels == "median"
        mmd = {f"mmd_{s}": Scored(blocks.mean_mmd(features[s], use_median=use_median)) for s in self.streams}
        return {"ce": self.classify(features, batch).scored, **mmd}

    @classmethod
    def check(cls, config: Config, layout: BatchLayout) -> None:
        block, share_ = config.method.mmd_block, layout.domain_batch
        if share_ % block == 0 and fits(layout, block):
            return
        sizes = [b for b in range(2, share_ + 1) if share_ % b == 0 and fits(layout, b)]
        why = (
            "would span accumulation steps, whose features are never there together"
            if share_ % block == 0
            else f"does not divide the {share_} clips a domain"
        )
        listed = ", ".join(map(str, sizes)) or "none with this layout: use more ranks or a larger train.micro_batch"
        raise UserError(f"method.mmd_block={block}: a block {why} ({layout.describe()}); sizes that fit: {listed}")

    @classmethod
    def crosses_ranks(cls, config: Config, layout: BatchLayout) -> bool:
        share_ = layout.micro_batch // 2
        return layout.world_size > 1 and (layout.layout == "domain_pure" or share_ % config.method.mmd_block > 0)


def fits(layout: BatchLayout, block: int) -> bool:
    """Whether the source and target clips of every block are at hand in one accumulation step, on whatever ranks."""
    step_of = np.empty(layout.global_batch, np.int64)
    for micro in range(layout.accumulation):
        for rank in range(layout.world_size):
            step_of[layout.rows(rank, micro)] = micro
    by_block = step_of.reshape(2, -1, block)  # domain, block, clip
    return bool((by_block == by_block[:1, :, :1]).all())


class Blocks:
    """The blocks of a micro-batch, on this rank alone where they are whole here, else over all ranks."""

    def __init__(self, batch: Batch, block: int) -> None:
        self._block = block
        number_N = batch.place_N // block
        counts = number_N.unique(return_counts=True)[1]
        # The layouts are symmetric, so that every rank answers alike.
        self._here = bool((counts == 2 * block).all())
        self._number_N, self._domain_N, self._weight_N = (
            (x if self._here else gather_rows(x)) for x in (number_N, batch.domain_N, batch.weights["mmd"])
        )

    def mean_mmd(self, features_ND: Tensor, *, use_median: bool) -> Tensor:
        """This rank's share of the mean over the blocks of the global batch; shares add up over ranks and steps."""
        wide_ND = wide(features_ND)
        if not self._here:
            wide_ND = gather_rows(wide_ND)
        parts = []
        for number in self._number_N.unique().tolist():
            inside_N = self._number_N == number
            source, target = (wide_ND[inside_N & (self._domain_N == domain)] for domain in (0, 1))
            weight = self._weight_N[inside_N].sum().to(wide_ND.dtype)
            parts.append(weight * mmd_squared(source, target, _scales(source, target, use_median=use_median)))
        # Gathered blocks are computed by every rank alike, and each answers for its share.
        return torch.stack(parts).sum() / (1 if self._here else world_size())


def mmd_squared(source_BD: Tensor, target_BD: Tensor, scales_G: Tensor) -> Tensor:
    """Biased squared MMD under the sum of the kernels exp(-||x - y||^2 / g)."""
    return (
        _mean_kernel(source_BD, source_BD, scales_G)
        + _mean_kernel(target_BD, target_BD, scales_G)
        - 2 * _mean_kernel(source_BD, target_BD, scales_G)
    )


def _mean_kernel(x_BD: Tensor, y_BD: Tensor, scales_G: Tensor) -> Tensor:
    return torch.exp(-_squared_distances(x_BD, y_BD)[..., None] / scales_G).sum(dim=-1).mean()


def _squared_distances(x_BD: Tensor, y_BD: Tensor) -> Tensor:
    """`(B, B)` by differences: |x|^2 + |y|^2 - 2xy would cancel to noise against the smallest kernels (0.04)."""
    return torch.cdist(x_BD, y_BD, compute_mode="donot_use_mm_for_euclid_dist").pow(2)


def _scales(source_BD: Tensor, target_BD: Tensor, *, use_median: bool) -> Tensor:
    if not use_median:
        return source_BD.new_tensor(FIXED_SCALES)
    with torch.no_grad():
        both = torch.cat([source_BD, target_BD])
        distances = _squared_distances(both, both)
        apart = distances[~torch.eye(len(both), dtype=torch.bool, device=both.device)]
        return apart.median().clamp_min(1e-12) * source_BD.new_tensor([2.0**power for power in MEDIAN_POWERS])
