"""Adversarial alignment alone: one domain discriminator per stream behind a gradient reversal (spec 1.3, 2.1, 2.2).

    L = s * L_y + sum_m L_d^m

The discriminators learn at full weight; the features are pushed by s * lambda_d * ramp. Stage 1 has no adversarial
share; stage 2 starts with fresh discriminators.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from mmsada_hpc.config import Config
from mmsada_hpc.data.batch import Batch
from mmsada_hpc.methods.base import ClipWeights, Factors, Features, Method, Moment, register, share
from mmsada_hpc.methods.heads import mlp_of, two_layer_head
from mmsada_kernels import Scored, discriminate


@register("adversarial")
class Adversarial(Method):
    """A discriminator for each stream."""

    fresh_in_stage2 = ("discriminator",)

    def add_heads(self) -> None:
        self.discriminator = self.per_stream(two_layer_head)

    @staticmethod
    def weigh(domain_N: NDArray[np.int64], corresponds_N: NDArray[np.bool_]) -> ClipWeights:
        return {"ce": share((domain_N == 0) & corresponds_N), "domain": share(domain_N >= 0)}

    def factors(self, at: Moment) -> Factors:
        domain = {f"domain_{stream}": at.adapts for stream in self.streams}
        return Factors({"ce": at.scale, **domain}, reversal=at.scale * self.settings.lambda_d * at.ramp)

    def terms(self, features: Features, batch: Batch, reversal: Tensor) -> Mapping[str, Scored]:
        seen_ND = self.seen(features)
        domain = {
            f"domain_{stream}": discriminate(
                seen_ND[stream],
                mlp_of(self.discriminator[stream]),
                domain_N=batch.domain_N,
                weight_N=batch.weights["domain"],
                reversal=reversal,
            )
            for stream in self.streams
        }
        return {"ce": self.classify(features, batch).scored, **domain}

    def seen(self, features: Features) -> Features:
        """What the discriminators see."""
        return features

    def probe(self, features: Features, domain: int) -> dict[str, float]:
        return domain_accuracies(self.discriminator, self.seen(features), domain)

    @classmethod
    def label(cls, config: Config) -> str:
        return f"{cls.name} (lambda_d {config.method.lambda_d:g})"


def domain_accuracies(discriminator: nn.ModuleDict, inputs_ND: Features, domain: int) -> dict[str, float]:
    """Percent of clips that each stream's discriminator puts into the domain they come from."""
    hits = {s: head(inputs_ND[s]).argmax(dim=1) == domain for s, head in discriminator.items()}
    return {f"domain_acc_{stream}": 100 * float(hit_N.double().mean()) for stream, hit_N in hits.items()}
