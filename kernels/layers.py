"""What stands between the convolutions of a video network, as forward and backward pieces without autograd: batch norm
over groups of clips with a ReLU, and max pooling. Definitions: `mmsada_kernels.layers_reference`.

Tensors are `(N, C, T, H, W)` in channels_last_3d memory; outputs may be channel slices of wider ones, so that branches
write where they are to be joined.
"""

import functools
import importlib
import importlib.util
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mmsada_kernels import cpu, layers_reference


def is_compiled(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the operators below have a compiled form for tensors like these: C++ on a CPU, Triton on a GPU. Tensors
    without memory are taken for a CPU's, so that estimates follow what training would do.
    """
    if device.type == "cuda":
        takes = dtype in (torch.float32, torch.bfloat16, torch.float16) and not cpu.wants_reference()
        return takes and _triton(device.index or 0) is not None
    return device.type in ("cpu", "meta") and dtype in (torch.float32, torch.bfloat16) and cpu.is_loaded()


@functools.cache
def _triton(index: int) -> ModuleType | None:
    """The operators in Triton; None where it is missing or the GPU is too old for it."""
    if importlib.util.find_spec("triton") is None:
        return None
    if torch.version.cuda is None or torch.cuda.get_device_capability(index) < (8, 0):
        return None
    return importlib.import_module("mmsada_kernels.triton.layers")


def _form(x: Tensor) -> Any:
    if x.device.type == "meta" or not is_compiled(x.device, x.dtype):
        return layers_reference
    return torch.ops.mmsada if x.device.type == "cpu" else _triton(x.device.index or 0)


def pad(x_NCTHW: Tensor, before: Sequence[int], after: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros around T, H and W, in another type."""
    form = _form(x_NCTHW) if x_NCTHW.device.type == "cpu" else layers_reference
    return form.pad(x_NCTHW, before, after, dtype)


def group_statistics(x_NCTHW: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every group and channel, `(G, C)` each, at least fp32."""
    return _form(x_NCTHW).group_statistics(x_NCTHW, groups)


def norm_relu_out(x_NCTHW: Tensor, mean_GC: Tensor, inv_std_GC: Tensor, bias_C: Tensor, out: Tensor) -> None:
    """`relu((x - mean) * inv_std + bias)` into `out`."""
    _form(x_NCTHW).norm_relu_out(x_NCTHW, mean_GC, inv_std_GC, bias_C, out)


def norm_relu_backward_out(
    gy_NCTHW: Tensor, x_NCTHW: Tensor, mean_GC: Tensor, inv_std_GC: Tensor, bias_C: Tensor, gx: Tensor
) -> Tensor:
    """Gradient of `norm_relu_out`, through the statistics of x, into `gx`; returns the bias's, `(C,)`."""
    return _form(x_NCTHW).norm_relu_backward_out(gy_NCTHW, x_NCTHW, mean_GC, inv_std_GC, bias_C, gx)


def max_pool(
    x_NCTHW: Tensor, kernel: Sequence[int], stride: Sequence[int], before: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The maximum of each window and its place there, uint8."""
    return _form(x_NCTHW).max_pool(x_NCTHW, kernel, stride, before)


def max_pool_backward_out(
    gy_NCTHW: Tensor,
    places_NCTHW: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    before: Sequence[int],
    adds: bool,
    gx: Tensor,
) -> None:
    """Gradient of `max_pool` into `gx`, or added to what is there."""
    _form(gx).max_pool_backward_out(gy_NCTHW, places_NCTHW, kernel, stride, before, adds, gx)


def norm_relu_pool_backward_out(
    gy_NCTHW: Tensor,
    pooled_NCTHW: Tensor,
    places_NCTHW: Tensor,
    x_NCTHW: Tensor,
    mean_GC: Tensor,
    inv_std_GC: Tensor,
    bias_C: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    before: Sequence[int],
    gx: Tensor,
) -> Tensor:
    """Gradient of `norm_relu_out(max_pool(x))` by x, through the statistics of the whole x, into `gx`; returns the
    bias's, `(C,)`. `pooled_NCTHW` and `places_NCTHW` are what `max_pool` gave.
    """
    return _form(x_NCTHW).norm_relu_pool_backward_out(
        gy_NCTHW, pooled_NCTHW, places_NCTHW, x_NCTHW, mean_GC, inv_std_GC, bias_C, kernel, stride, before, gx
    )
