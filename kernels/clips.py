"""Decoded crops to normalised float clips, on the CPU: the compiled end of the loader. Where it is missing, and on a
GPU, DALI's graph does the same (`mmsada_hpc.data.graph`).
"""

import torch
from torch import Tensor

from mmsada_kernels import cpu


def is_compiled() -> bool:
    """Whether `make_clips` can be called."""
    return cpu.is_loaded()


def make_clips(
    crops: Tensor, size_N2: Tensor, flip_N: Tensor, *, frames: int, planes: int, channels: int, side: int
) -> Tensor:
    """Resize (linear, no antialiasing), mirror and normalise to (x - 128) / 128 in one pass, with torch's threads.

    Args:
        crops: flat uint8, the images one after another: by clip, frame, plane, each `(height, width, channels)`.
        size_N2: int64, height and width of each clip's crops.
        flip_N: bool.
        planes: images a frame: 1, or 2 of one channel each, u and v of flow, which become the channels; where mirrored,
            u changes its sign (spec 4.5).
        side: output height and width.

    Returns:
        float32 `(N, frames, side, side, planes * channels)`. Its memory goes to later clips when the last tensor on it
        is gone.
    """
    clips_NTHWC: Tensor = torch.ops.mmsada.make_clips(crops, size_N2, flip_N, frames, planes, channels, side)
    return clips_NTHWC
