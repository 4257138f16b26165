"""The seeded values in this folder's checkpoints: I3D with at most three channels a convolution, seven classes."""

import numpy as np

from tests.model.plain_weights import Params, random_params

CLASSES = 7


def narrow_params(stem_in: int) -> Params:
    """Float32, by TensorFlow's names without a prefix, batch norms `(C,)`."""
    params = random_params(stem_in, gamma=False, classes=CLASSES, scaled=lambda channels: max(1, channels // 128))
    return {name: values.astype(np.float32) for name, values in params.items()}
