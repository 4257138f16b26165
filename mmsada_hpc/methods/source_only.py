"""Source only: the classification loss on labelled source clips in both stages, no target clip anywhere (spec 6.4).

The lower bar of every table. Trained on the target's own labelled train set (`data.source=[target kitchen]`) it is the
upper bar.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from mmsada_hpc.data.batch import Batch
from mmsada_hpc.methods.base import Features, Losses, LossScales, Method, linear_of, register
from mmsada_kernels import classify


@register("source_only")
class SourceOnly(Method):
    """A whole batch of source clips, all classified."""

    adapts = False
    negatives = False

    @staticmethod
    def weigh(domain_N: NDArray[np.int64], corresponds_N: NDArray[np.bool_]) -> Mapping[str, NDArray[np.float64]]:
        return {"ce": np.full(len(domain_N), 1 / len(domain_N))}

    def losses(self, features: Features, batch: Batch, scales: LossScales) -> Losses:
        found = classify(
            [features[s] for s in self.streams],
            [batch.dropout_SND[s] for s in self.streams],
            [linear_of(self.classifier[s]) for s in self.streams],
            label_N=batch.label_N,
            weight_N=batch.weights["ce"],
            num_classes=self.num_classes,
        )
        return Losses(scales.ce * found.loss, {"loss_ce": found.loss, "top1": found.accuracy})
