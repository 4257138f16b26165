"""MM-SADA: per-stream adversarial alignment and multi-modal self-supervision (Munro & Damen, CVPR 2020).

    L = s * (L_y + lambda_c * L_c) + sum_m L_d^m

L_y classifies labelled source clips from the summed logits of all streams. L_c asks of source and target clips alike
whether their windows come from one segment. L_d^m tells source from target behind a gradient reversal of s * lambda_d
* ramp, so the discriminators learn at full weight while the features are pushed by lambda_d relative to L_y. Stage 1
has no adversarial share; stage 2 starts with fresh discriminators and momentum, and s = 0.2 (spec 2.1, 2.2).
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mmsada_hpc.config import Config
from mmsada_hpc.data.batch import Batch
from mmsada_hpc.methods.adversarial import domain_accuracies
from mmsada_hpc.methods.base import ClipWeights, Factors, Features, Method, Moment, register, share
from mmsada_hpc.methods.heads import linear_of, mlp_of, two_layer_head
from mmsada_hpc.methods.self_supervised import correspondence_accuracy
from mmsada_kernels import Scored, adaptation_heads


@register("mmsada")
class MmSada(Method):
    """Both alignments."""

    negatives = True
    fresh_in_stage2 = ("discriminator",)

    def add_heads(self) -> None:
        self.discriminator = self.per_stream(two_layer_head)
        self.correspondence = two_layer_head(sum(self.sizes.features.values()))

    @staticmethod
    def weigh(domain_N: NDArray[np.int64], corresponds_N: NDArray[np.bool_]) -> ClipWeights:
        classified_N = (domain_N == 0) & corresponds_N  # a negative has two labels, so it has none
        every_N = share(domain_N >= 0)
        return {"ce": share(classified_N), "corr": every_N, "domain": every_N}

    def factors(self, at: Moment) -> Factors:
        terms = {"ce": at.scale, "corr": at.scale * self.settings.lambda_c}
        domain = {f"domain_{stream}": at.adapts for stream in self.streams}
        return Factors(terms | domain, reversal=at.scale * self.settings.lambda_d * at.ramp)

    def terms(self, features: Features, batch: Batch, reversal: Tensor) -> Mapping[str, Scored]:
        found = adaptation_heads(
            self.listed(features),
            self.listed(batch.dropout_SND),
            classifier_S=[linear_of(self.classifier[s]) for s in self.streams],
            discriminator_S=[mlp_of(self.discriminator[s]) for s in self.streams],
            correspondence_head=mlp_of(self.correspondence),
            label_N=batch.label_N,
            domain_N=batch.domain_N,
            corresponds_N=batch.corresponds_N,
            weight_ce_N=batch.weights["ce"],
            weight_corr_N=batch.weights["corr"],
            weight_domain_N=batch.weights["domain"],
            reversal=reversal,
            num_classes=self.sizes.num_classes,
        )
        domain = {f"domain_{s}": term for s, term in zip(self.streams, found.domain_S, strict=True)}
        return {"ce": found.classified.scored, "corr": found.corresponds, **domain}

    def probe(self, features: Features, domain: int) -> dict[str, float]:
        corresponds = correspondence_accuracy(self.correspondence, self.listed(features))
        return {"corr_acc": corresponds, **domain_accuracies(self.discriminator, features, domain)}

    @classmethod
    def label(cls, config: Config) -> str:
        sync = ", sync" if config.data.positives == "sync" else ""
        return f"{cls.name} (lambda_d {config.method.lambda_d:g}{sync})"
