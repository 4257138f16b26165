"""Minimum entropy on the target (Grandvalet & Bengio, NeurIPS 2004); not a row of the MM-SADA paper.

    L = s * (L_y + lambda_h * ramp * H),   H = mean over target clips of the entropy of the fused class probabilities

No head beside the classifier. The weight follows the ramp of stage 2, because a confident early guess is hard to undo.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mmsada_hpc.data.batch import Batch
from mmsada_hpc.methods.base import ClipWeights, Factors, Features, Method, Moment, register, share
from mmsada_kernels import Scored, wide


@register("target_entropy")
class TargetEntropy(Method):
    """Classified source clips, confident target clips."""

    @staticmethod
    def weigh(domain_N: NDArray[np.int64], corresponds_N: NDArray[np.bool_]) -> ClipWeights:
        return {"ce": share(domain_N == 0), "entropy": share(domain_N == 1)}

    def factors(self, at: Moment) -> Factors:
        return Factors({"ce": at.scale, "entropy": at.scale * self.settings.lambda_h * at.ramp})

    def terms(self, features: Features, batch: Batch, reversal: Tensor) -> Mapping[str, Scored]:
        found = self.classify(features, batch)
        log_NC = wide(found.logits_NK)[:, : self.sizes.num_classes].log_softmax(dim=1)
        entropy_N = -(log_NC.exp() * log_NC).sum(dim=1)
        return {"ce": found.scored, "entropy": Scored((batch.weights["entropy"].to(entropy_N.dtype) * entropy_N).sum())}
