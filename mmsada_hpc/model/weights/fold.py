"""Batch norm with a scale, gamma, as one without: gamma goes through the ReLU into the next convolution.

relu(gamma z + beta) = |gamma| relu(sign(gamma) z + beta / |gamma|), and |gamma| > 0 passes through max pools, zero
padding and averages. So a unit's filters take gamma's sign, its beta is divided by |gamma|, and whatever reads the unit
multiplies its filters by |gamma|. That is exact at test and in training, because no unit's own statistics change but
by a sign. Where gamma is 0 the output is relu(beta): the filters become 0, which is exact as well.

The four units that make the 1024-d feature have no convolution after them (the classifier is drawn anew, so it
cannot take their gamma). Their filters and means are multiplied by gamma and the variance is kept: exact at test. In
training a batch norm without scale divides by the batch's own deviation, so there the feature comes out without its
|gamma|.
"""

import numpy as np

from mmsada_hpc.model.weights.names import FEATURES, UNITS, Array, I3dArrays


def without_gamma(arrays: I3dArrays) -> I3dArrays:
    """The same network without a scale; bit for bit the same arrays where every gamma is 1."""
    w, beta, mean = dict(arrays.w), dict(arrays.beta), dict(arrays.mean)
    left: dict[str, Array] = {}  # what the readers of a unit still have to multiply by
    for unit in UNITS:
        name, gamma = unit.ours, _double(arrays.gamma.get(unit.ours, np.ones_like(beta[unit.ours])))
        before = np.concatenate([left[i] for i in unit.inputs]) if unit.inputs else np.ones(w[name].shape[1])
        is_last = name in FEATURES
        size = np.where(gamma == 0, 1.0, np.abs(gamma))
        factor = gamma if is_last else np.sign(gamma)
        left[name] = np.ones_like(size) if is_last else size
        if np.all(factor == 1) and np.all(before == 1) and np.all(size == 1):
            continue
        dtype = w[name].dtype
        w[name] = (_double(w[name]) * factor[:, None, None, None, None] * before[:, None, None, None]).astype(dtype)
        mean[name] = (_double(mean[name]) * factor).astype(dtype)
        if not is_last:
            beta[name] = (_double(beta[name]) / size).astype(dtype)
    return I3dArrays(w, beta, mean, arrays.var, arrays.logits_w, arrays.logits_b)


def _double(values: Array) -> Array:
    return values.astype(np.float64)
