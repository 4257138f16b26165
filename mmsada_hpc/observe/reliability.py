"""Whether confidence can be believed: accuracy against confidence, and the expected calibration error."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 10


def reliability(probabilities_NK: NDArray[np.float64], labels_N: NDArray[np.int64]) -> dict[str, Any]:
    """How often the prediction is right, by how sure it is; all in percent, rounded to four decimals.

    Args:
        probabilities_NK: softmax of N segments over all K outputs of the classifier (a spare output may win: a miss).
        labels_N: true classes.

    Returns:
        bins: ten of [count, mean confidence, accuracy]; bin b holds b/10 <= confidence < (b+1)/10, the last also 1.
            Confidence and accuracy are None where the count is 0.
        ece: expected calibration error, the count-weighted mean of |accuracy - mean confidence|; None without segments.
    """
    if not len(labels_N):
        return {"bins": [[0, None, None] for _ in range(BINS)], "ece": None}
    confidence_N = probabilities_NK.max(axis=1)
    right_N = probabilities_NK.argmax(axis=1) == labels_N
    bin_N = np.clip((confidence_N * BINS).astype(np.int64), 0, BINS - 1)
    count = np.bincount(bin_N, minlength=BINS)
    sure = 100 * np.bincount(bin_N, weights=confidence_N, minlength=BINS) / count.clip(1)
    hits = 100 * np.bincount(bin_N, weights=right_N, minlength=BINS) / count.clip(1)
    bins = [
        [int(n), round(float(c), 4), round(float(a), 4)] if n else [0, None, None]
        for n, c, a in zip(count, sure, hits, strict=True)
    ]
    return {"bins": bins, "ece": round(float(np.sum(count * np.abs(hits - sure)) / len(labels_N)), 4)}
