"""Self-supervision alone: do the streams of a clip show one segment? Asked of source and target alike (spec 2.1, 2.3).

    L = s * (L_y + lambda_c * L_c)

Positives are windows of one segment, drawn apart (`data.positives=seg`, as released) or at one time (`sync`); negatives
pair a segment's RGB with another's flow, have no class, and stay out of L_y.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmsada_hpc.config import Config
from mmsada_hpc.data.batch import Batch
from mmsada_hpc.methods.base import ClipWeights, Factors, Features, Method, Moment, register, share
from mmsada_hpc.methods.heads import mlp_of, two_layer_head
from mmsada_kernels import Scored, correspondence


@register("self_supervised")
class SelfSupervised(Method):
    """One correspondence head, shared by both domains."""

    negatives = True

    def add_heads(self) -> None:
        self.correspondence = two_layer_head(sum(self.sizes.features.values()))

    @staticmethod
    def weigh(domain_N: NDArray[np.int64], corresponds_N: NDArray[np.bool_]) -> ClipWeights:
        return {"ce": share((domain_N == 0) & corresponds_N), "corr": share(domain_N >= 0)}

    def factors(self, at: Moment) -> Factors:
        return Factors({"ce": at.scale, "corr": at.scale * self.settings.lambda_c})

    def terms(self, features: Features, batch: Batch, reversal: Tensor) -> Mapping[str, Scored]:
        corresponds = correspondence(
            self.listed(features),
            mlp_of(self.correspondence),
            corresponds_N=batch.corresponds_N,
            weight_N=batch.weights["corr"],
        )
        return {"ce": self.classify(features, batch).scored, "corr": corresponds}

    def probe(self, features: Features, domain: int) -> dict[str, float]:
        return {"corr_acc": correspondence_accuracy(self.correspondence, self.listed(features))}

    @classmethod
    def label(cls, config: Config) -> str:
        return f"{cls.name} ({config.data.positives})"


def correspondence_accuracy(head: torch.nn.Module, features_SND: list[Tensor]) -> float:
    """Percent right over N true pairs and N false ones, each segment's first stream with the next one's others."""
    others = [x.roll(-place, dims=0) for place, x in enumerate(features_SND)]
    true_N = head(torch.cat(features_SND, dim=1)).argmax(dim=1) == 1
    false_N = head(torch.cat(others, dim=1)).argmax(dim=1) == 0
    return 50 * float(true_N.double().mean() + false_N.double().mean())
