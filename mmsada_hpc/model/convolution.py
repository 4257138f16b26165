"""3-D convolutions with TensorFlow's SAME padding: as a module, and as a forward and a backward without autograd."""

import contextlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmsada_kernels import layers

Triple = tuple[int, int, int]


def ndhwc(x_NCTHW: Tensor) -> Tensor:
    """In channels_last_3d memory; no copy where it is."""
    return x_NCTHW.contiguous(memory_format=torch.channels_last_3d)


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager[None]:
    """Where operators compute in the types they are given (tensors without memory have no autocast)."""
    device = x.device.type
    if not torch.amp.is_autocast_available(device):
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TF SAME: zeros before and after an axis of `size`; the odd one goes after."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def same_paddings(sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int]) -> list[tuple[int, int]]:
    """`same_padding` of T, H and W."""
    return [same_padding(n, k, s) for n, k, s in zip(sizes, kernel, stride, strict=True)]


def pad_to_same(
    x_NCTHW: Tensor, kernel: Sequence[int], stride: Sequence[int], *, dtype: torch.dtype
) -> tuple[Tensor, list[int]]:
    """The input in the type of the products and the symmetric padding to convolve it with; zeros are written around it
    only where the padding is lopsided (the stem at even sizes). Without autograd.
    """
    pads = same_paddings(x_NCTHW.shape[2:], kernel, stride)
    before, after = [p[0] for p in pads], [p[1] for p in pads]
    if before == after:
        return x_NCTHW.to(dtype), before
    return layers.pad(x_NCTHW, before, after, dtype), [0, 0, 0]


class SameConv3d(nn.Conv3d):
    """Convolution with SAME padding, no bias; weights drawn as Sonnet draws them."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__(channels_in, channels_out, kernel, stride=stride, bias=False)
        fan_in = channels_in * kernel**3
        nn.init.trunc_normal_(self.weight, std=fan_in**-0.5, a=-2 * fan_in**-0.5, b=2 * fan_in**-0.5)

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        pads = same_paddings(x_NCTHW.shape[2:], self.kernel_size, self.stride)
        padding = [before for before, _ in pads]
        if any(before != after for before, after in pads):
            x_NCTHW = nn.functional.pad(x_NCTHW, [p for pair in reversed(pads) for p in pair])
            padding = [0, 0, 0]
        if torch.is_autocast_enabled("cpu") and has_broken_bf16_gradient(x_NCTHW, self.kernel_size):
            with torch.autocast("cpu", enabled=False):
                y = nn.functional.conv3d(x_NCTHW.float(), self.weight, None, self.stride, padding)
            return y.to(torch.bfloat16)
        return nn.functional.conv3d(x_NCTHW, self.weight, None, self.stride, padding)


def has_broken_bf16_gradient(x_NCTHW: Tensor, kernel: Sequence[int]) -> bool:
    """Whether torch would take, in bf16, the kernel that reads memory nobody wrote: the weight gradient of a
    convolution over exactly two frames on a CPU with AVX-512 (measured with torch 2.13.0: up to 58 of 60 had a NaN; 1
    or 4 frames, and fp32: none). I3D has such maps in Mixed_4 at 8 frames and in Mixed_5 at 16.
    """
    return x_NCTHW.device.type == "cpu" and x_NCTHW.shape[2] == 2 and kernel[0] > 1


def convolve(
    x_NCTHW: Tensor, weight: Tensor, bias_C: Tensor | None = None, *, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """A convolution in the type of `x_NCTHW`, NDHWC in and out, without autograd."""
    weight, bias_C = weight.to(x_NCTHW.dtype), None if bias_C is None else bias_C.to(x_NCTHW.dtype)
    if _is_product(x_NCTHW, weight):
        return _clips(nn.functional.linear(_rows(x_NCTHW), weight.flatten(1), bias_C), x_NCTHW)
    # A single clip on one thread may come back in NCDHW.
    return ndhwc(nn.functional.conv3d(x_NCTHW, weight, bias_C, tuple(stride), tuple(padding)))


def convolve_backward(
    gy_NCTHW: Tensor,
    x_NCTHW: Tensor,
    weight: Tensor,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    needs_input: bool = True,
) -> tuple[Tensor | None, Tensor]:
    """Gradients of the input (where it needs one) and of the weight."""
    if _is_product(x_NCTHW, weight):
        gy_RC, x_RC = _rows(gy_NCTHW), _rows(x_NCTHW)
        gx = _clips(gy_RC @ weight.flatten(1), x_NCTHW) if needs_input else None
        return gx, (gy_RC.t() @ x_RC).view(weight.shape)
    dtype = x_NCTHW.dtype
    if dtype == torch.bfloat16 and has_broken_bf16_gradient(x_NCTHW, weight.shape[2:]):
        gy_NCTHW, x_NCTHW, weight = gy_NCTHW.float(), x_NCTHW.float(), weight.float()
    mask = [needs_input, True, False]
    gx, gw, _ = torch.ops.aten.convolution_backward(
        gy_NCTHW, x_NCTHW, weight, None, stride, padding, [1, 1, 1], False, [0, 0, 0], 1, mask
    )
    return (ndhwc(gx.to(dtype)) if needs_input else None), gw


# Measured on two cores with AVX-512, forward and backward of 1x1x1 convolutions as a matrix product over torch's own:
# 32-5,000 rows 1.1-2.4 times as fast in bf16, 1.5-7 times in fp32 on one thread; 25,000 rows and more 0.7-1.0 times.
_MOST_ROWS = 5_000


def _is_product(x_NCTHW: Tensor, weight: Tensor) -> bool:
    """Whether a convolution is computed as a matrix product of rows: 1x1x1 ones, where that is faster, and where one
    thread has fewer than 16 clips, for which torch leaves oneDNN (and NDHWC) for a slow kernel of its own.
    """
    if weight.shape[2:] != (1, 1, 1) or x_NCTHW.device.type != "cpu":
        return False
    return x_NCTHW[:, 0].numel() <= _MOST_ROWS or (len(x_NCTHW) < 16 and torch.get_num_threads() == 1)


def _rows(x_NCTHW: Tensor) -> Tensor:
    """`(N * T * H * W, C)`, a view of NDHWC memory."""
    return x_NCTHW.movedim(1, -1).reshape(-1, x_NCTHW.shape[1])


def _clips(rows_RC: Tensor, like_NCTHW: Tensor) -> Tensor:
    """The inverse of `_rows`."""
    n, _, *sizes = like_NCTHW.shape
    return rows_RC.view(n, *sizes, -1).movedim(-1, 1)
