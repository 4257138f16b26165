"""Source only: the classification loss on labelled source clips in both stages, no target clip anywhere (spec 6.4).

    L = s * L_y

The lower bar of every table; stage 2 goes on with s = 0.2 as the adapting methods do.
"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mmsada_hpc.data.batch import Batch
from mmsada_hpc.methods.base import ClipWeights, Factors, Features, Method, Moment, Side, register, share
from mmsada_kernels import Scored


@register("source_only")
class SourceOnly(Method):
    """A whole batch of source clips (128 as released), all classified."""

    trains_on: ClassVar[tuple[Side, ...]] = ("source",)

    @staticmethod
    def weigh(domain_N: NDArray[np.int64], corresponds_N: NDArray[np.bool_]) -> ClipWeights:
        return {"ce": share(domain_N == 0)}

    def factors(self, at: Moment) -> Factors:
        return Factors({"ce": at.scale})

    def terms(self, features: Features, batch: Batch, reversal: Tensor) -> Mapping[str, Scored]:
        return {"ce": self.classify(features, batch).scored}
