"""Seeded I3D weights by TensorFlow's names and layouts (spec 9.1), for tests; needs NumPy alone.

`w` is `[kT, kH, kW, in, out]`; names are without the stream's prefix. Nothing of the package is used.
"""

import zlib
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Params = dict[str, NDArray[np.floating]]
Scaling = Callable[[int], int]
# Channels of Branch_0, of Branch_1's 0a and 0b, of Branch_2's 0a and 0b, of Branch_3.
BLOCKS = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}


def second_of_branch_2(block: str) -> str:
    return "Branch_2/Conv3d_0a_3x3" if block == "Mixed_5b" else "Branch_2/Conv3d_0b_3x3"


def convolutions(stem_in: int, scaled: Scaling = int) -> Iterator[tuple[str, int, int, int]]:
    """Name, kernel, channels in and out of all 57, in the network's order; `scaled` makes it narrower."""
    stem, second = scaled(64), scaled(192)
    yield "Conv3d_1a_7x7", 7, stem_in, stem
    yield "Conv3d_2b_1x1", 1, stem, stem
    yield "Conv3d_2c_3x3", 3, stem, second
    channels = second
    for block, sizes in BLOCKS.items():
        b0, b1a, b1b, b2a, b2b, b3 = map(scaled, sizes)
        yield f"{block}/Branch_0/Conv3d_0a_1x1", 1, channels, b0
        yield f"{block}/Branch_1/Conv3d_0a_1x1", 1, channels, b1a
        yield f"{block}/Branch_1/Conv3d_0b_3x3", 3, b1a, b1b
        yield f"{block}/Branch_2/Conv3d_0a_1x1", 1, channels, b2a
        yield f"{block}/{second_of_branch_2(block)}", 3, b2a, b2b
        yield f"{block}/Branch_3/Conv3d_0b_1x1", 1, channels, b3
        channels = b0 + b1b + b2b + b3


def random_params(stem_in: int, *, gamma: bool, classes: int = 400, scaled: Scaling = int) -> Params:
    """Seeded weights in float64 whose activations neither vanish nor grow. With `gamma`, a scale of either sign, and 0
    once in every sixteen channels.
    """
    params: Params = {}
    for name, kernel, inputs, outputs in convolutions(stem_in, scaled):
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        shape = (kernel, kernel, kernel, inputs, outputs)
        params[f"{name}/conv_3d/w"] = rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape)
        params[f"{name}/batch_norm/beta"] = rng.normal(0, 0.1, outputs)
        params[f"{name}/batch_norm/moving_mean"] = rng.normal(0, 0.1, outputs)
        params[f"{name}/batch_norm/moving_variance"] = rng.uniform(0.5, 1.5, outputs)
        if gamma:
            scale = rng.uniform(0.5, 1.5, outputs) * rng.choice([-1, 1, 1], outputs)
            scale[:: min(16, outputs)] = 0
            params[f"{name}/batch_norm/gamma"] = scale
    rng = np.random.default_rng(7)
    sizes = BLOCKS["Mixed_5c"]
    features = sum(scaled(sizes[branch]) for branch in (0, 2, 4, 5))
    params["Logits/Conv3d_0c_1x1/conv_3d/w"] = rng.normal(0, 1 / 32, (1, 1, 1, features, classes))
    params["Logits/Conv3d_0c_1x1/conv_3d/b"] = rng.normal(0, 0.1, classes)
    return params
