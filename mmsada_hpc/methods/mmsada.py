"""MM-SADA: per-stream adversarial alignment and multi-modal self-supervision (Munro & Damen, CVPR 2020).

    L = s * (L_y + lambda_c * L_c) + L_d^rgb + L_d^flow

L_y classifies labelled source clips from the summed logits of both streams. L_c asks of source and target clips alike
whether their RGB and flow windows come from one
segment. L_d^m tells source from target behind a gradient reversal of s * lambda_d * ramp, so the discriminators learn
at full weight while the features are pushed by
lambda_d relative to L_y. Stage 1 has no adversarial share; stage 2 starts with fresh discriminators and momentum, and s
= 0.2 (spec 2.1, 2.2).
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mmsada_hpc.config import MethodConfig, ModelConfig
from mmsada_hpc.data.batch import Batch
from mmsada_hpc.methods.base import Features, Losses, LossScales, Method, linear_of, mlp_of, register, two_layer_head
from mmsada_kernels import adaptation_heads


@register("mmsada")
class MmSada(Method):
    """Both alignments."""

    fresh_in_stage2 = ("discriminator",)
    figures = (
        "loss_ce",
        "top1",
        "loss_corr",
        "corr_acc",
        "loss_domain_rgb",
        "domain_acc_rgb",
        "loss_domain_flow",
        "domain_acc_flow",
    )

    def __init__(
        self, *, streams: tuple[str, ...], feature_size: int, num_classes: int, model: ModelConfig, method: MethodConfig
    ) -> None:
        super().__init__(
            streams=streams, feature_size=feature_size, num_classes=num_classes, model=model, method=method
        )
        self.discriminator = nn.ModuleDict({s: two_layer_head(feature_size) for s in streams})
        self.correspondence = two_layer_head(len(streams) * feature_size)

    @staticmethod
    def weigh(domain_N: NDArray[np.int64], corresponds_N: NDArray[np.bool_]) -> Mapping[str, NDArray[np.float64]]:
        classified_N = (domain_N == 0) & corresponds_N  # a negative has two labels, so it has none
        every_N = np.full(len(domain_N), 1 / len(domain_N))
        return {"ce": classified_N / classified_N.sum(), "corr": every_N, "domain": every_N}

    def losses(self, features: Features, batch: Batch, scales: LossScales) -> Losses:
        rgb = features[self.streams[0]]
        found = adaptation_heads(
            [features[s] for s in self.streams],
            [batch.dropout_SND[s] for s in self.streams],
            classifier_S=[linear_of(self.classifier[s]) for s in self.streams],
            discriminator_S=[mlp_of(self.discriminator[s]) for s in self.streams],
            correspondence_head=mlp_of(self.correspondence),
            label_N=batch.label_N,
            domain_N=batch.domain_N,
            corresponds_N=batch.corresponds_N,
            weight_ce_N=batch.weights["ce"],
            weight_corr_N=batch.weights["corr"],
            weight_domain_N=batch.weights["domain"],
            reversal=torch.tensor(scales.reversal, dtype=rgb.dtype, device=rgb.device),
            num_classes=self.num_classes,
        )
        adversarial = torch.stack([d.loss for d in found.domain_S]).sum()
        total = scales.ce * found.classified.loss + scales.corr * found.corresponds.loss + scales.domain * adversarial
        figures = {
            "loss_ce": found.classified.loss,
            "top1": found.classified.accuracy,
            "loss_corr": found.corresponds.loss,
            "corr_acc": found.corresponds.accuracy,
        }
        for stream, domain in zip(self.streams, found.domain_S, strict=True):
            figures |= {f"loss_domain_{stream}": domain.loss, f"domain_acc_{stream}": domain.accuracy}
        return Losses(total, figures)
