"""MCD: two classifiers disagree on target clips as much as they can, the features as little as they can (spec 6.3).

    L = s * (L_y + L_y') - s * lambda_mcd * D,   D = mean over target clips and classes of |softmax(p) - softmax(p')|

One step in place of the MCD paper's three: a gradient reversal of lambda_d * ramp lies between dropout and the two
heads, for target clips only, so the heads maximise D while the features minimise it. Both heads exist and learn in
stage 1, which has no D. The main head is what is tested.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmsada_hpc.data.batch import Batch
from mmsada_hpc.methods.base import ClipWeights, Factors, Features, Method, Moment, register, share
from mmsada_hpc.methods.heads import classifier_head, linear_of
from mmsada_kernels import Classified, Scored, classify, reverse_gradient, wide


@register("mcd")
class Mcd(Method):
    """A second classifier for each stream."""

    def add_heads(self) -> None:
        self.auxiliary = self.per_stream(lambda width: classifier_head(width, self.num_logits))

    @staticmethod
    def weigh(domain_N: NDArray[np.int64], corresponds_N: NDArray[np.bool_]) -> ClipWeights:
        return {"ce": share(domain_N == 0), "discrepancy": share(domain_N == 1)}

    def factors(self, at: Moment) -> Factors:
        discrepancy = -at.scale * self.settings.lambda_mcd * at.adapts
        return Factors(
            {"ce": at.scale, "auxiliary": at.scale, "discrepancy": discrepancy},
            reversal=self.settings.lambda_d * at.ramp,  # the term itself carries s
        )

    def terms(self, features: Features, batch: Batch, reversal: Tensor) -> Mapping[str, Scored]:
        dropped = [features[s] * batch.dropout_SND[s] for s in self.streams]
        is_target_N1 = (batch.domain_N == 1)[:, None]
        inputs = [torch.where(is_target_N1, reverse_gradient(x, reversal), x) for x in dropped]
        main, auxiliary = (self._head(heads, inputs, batch) for heads in (self.classifier, self.auxiliary))
        shares = [self._probabilities(head.logits_NK) for head in (main, auxiliary)]
        apart_N = (shares[0] - shares[1]).abs().mean(dim=1)
        discrepancy = (batch.weights["discrepancy"].to(apart_N.dtype) * apart_N).sum()
        return {"ce": main.scored, "auxiliary": auxiliary.scored, "discrepancy": Scored(discrepancy)}

    def _head(self, heads: torch.nn.ModuleDict, inputs: list[Tensor], batch: Batch) -> Classified:
        return classify(
            inputs,
            [torch.ones_like(x) for x in inputs],  # dropped already: the reversal comes after it
            [linear_of(heads[s]) for s in self.streams],
            label_N=batch.label_N,
            weight_N=batch.weights["ce"],
            num_classes=self.sizes.num_classes,
        )

    def _probabilities(self, logits_NK: Tensor) -> Tensor:
        return wide(logits_NK)[:, : self.sizes.num_classes].softmax(dim=1)
