"""I3D at test, without autograd: batch norm folded into the convolutions, the 1x1x1 convolutions of a block as one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmsada_hpc.model.batch_norm import EPS, GroupBatchNorm
from mmsada_hpc.model.convolution import SameConv3d, convolve, pad_to_same


def folded(convolutions: Sequence[SameConv3d], norms: Sequence[GroupBatchNorm]) -> tuple[Tensor, Tensor]:
    """Weight and bias of one convolution that gives the outputs of all of them, normalised, side by side.

    Folded in the parameters' type; what is rounded to bf16 is the product of weight and 1 / std.
    """
    weights, biases = [], []
    for convolution, norm in zip(convolutions, norms, strict=True):
        mean_C, var_C = norm.test_statistics()
        inv_std_C = (var_C + EPS).rsqrt()
        weights.append(convolution.weight * inv_std_C[:, None, None, None, None])
        biases.append(norm.bias - mean_C * inv_std_C)
    return torch.cat(weights), torch.cat(biases)


def convolve_relu(x_NCTHW: Tensor, weight: Tensor, bias_C: Tensor, *, stride: int = 1) -> Tensor:
    """With SAME padding."""
    kernel, strides = weight.shape[2:], (stride,) * 3
    padded, padding = pad_to_same(x_NCTHW, kernel, strides, dtype=x_NCTHW.dtype)
    return convolve(padded, weight, bias_C, stride=strides, padding=padding).relu_()
