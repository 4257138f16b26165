"""The layers between convolutions in plain PyTorch: the definition of `mmsada_kernels.layers`.

A micro-batch `(N, C, T, H, W)` holds G batch-norm groups of N / G clips each; statistics are `(G, C)`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def _grouped(x_NCTHW: Tensor, groups: int) -> Tensor:
    return x_NCTHW.unflatten(0, (groups, -1))


def _per_channel(statistic_GC: Tensor) -> Tensor:
    return statistic_GC[:, None, :, None, None, None]


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def pad(x_NCTHW: Tensor, before: Sequence[int], after: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros around T, H and W, in another type."""
    pads: list[int] = []
    for pair in zip(before, after, strict=True):
        pads = [*pair, *pads]
    return F.pad(x_NCTHW.to(dtype), pads)


def group_statistics(x_NCTHW: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every group and channel, `(G, C)` each, at least fp32."""
    var_GC, mean_GC = torch.var_mean(_grouped(_wide(x_NCTHW), groups), dim=(1, 3, 4, 5), correction=0)
    return mean_GC, var_GC


def _normalised(x_NCTHW: Tensor, mean_GC: Tensor, inv_std_GC: Tensor) -> Tensor:
    groups = len(mean_GC)
    return (_grouped(_wide(x_NCTHW), groups) - _per_channel(mean_GC)) * _per_channel(inv_std_GC)


def norm_relu_out(x_NCTHW: Tensor, mean_GC: Tensor, inv_std_GC: Tensor, bias_C: Tensor, out: Tensor) -> None:
    """`relu((x - mean) * inv_std + bias)` into `out`, which may be a channel slice."""
    y = _normalised(x_NCTHW, mean_GC, inv_std_GC) + bias_C[:, None, None, None]
    out.copy_(F.relu(y).flatten(0, 1))


def norm_relu_backward_out(
    gy_NCTHW: Tensor, x_NCTHW: Tensor, mean_GC: Tensor, inv_std_GC: Tensor, bias_C: Tensor, gx: Tensor
) -> Tensor:
    """Gradient of `norm_relu_out` whose mean and variance were x's own, into `gx`; returns the bias's."""
    xhat = _normalised(x_NCTHW, mean_GC, inv_std_GC)
    is_off = xhat + bias_C[:, None, None, None] <= 0  # recomputed, so that nothing but x is kept
    passed = _grouped(_wide(gy_NCTHW), len(mean_GC)).masked_fill(is_off, 0)
    over = (1, 3, 4, 5)
    centred = passed - passed.mean(over, keepdim=True) - xhat * (passed * xhat).mean(over, keepdim=True)
    gx.copy_((centred * _per_channel(inv_std_GC)).flatten(0, 1))
    return passed.sum((0, *over))


def _padded(
    x_NCTHW: Tensor, out: Sequence[int], kernel: Sequence[int], stride: Sequence[int], before: Sequence[int]
) -> Tensor:
    pads: list[int] = []
    for size, o, k, s, b in zip(x_NCTHW.shape[2:], out, kernel, stride, before, strict=True):
        pads = [b, max(0, (o - 1) * s + k - b - size), *pads]
    return F.pad(x_NCTHW, pads, value=-torch.inf)


def _windows(padded: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    """`(N, C, T', H', W', places of the window)`, a view where torch allows it."""
    for axis, (k, s) in enumerate(zip(kernel, stride, strict=True), start=2):
        padded = padded.unfold(axis, k, s)
    return padded.flatten(-3)


def max_pool(
    x_NCTHW: Tensor, kernel: Sequence[int], stride: Sequence[int], before: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Max pool to ceil(size / stride) with `before` places of padding by minus infinity in front of each axis; the
    maximum, and as uint8 the place of its first occurrence in the window (in the order T, H, W).
    """
    out = [-(-size // s) for size, s in zip(x_NCTHW.shape[2:], stride, strict=True)]
    padded = _padded(x_NCTHW, out, kernel, stride, before)
    windows = _windows(padded, kernel, stride)[:, :, : out[0], : out[1], : out[2]]
    y, place = windows.max(dim=-1)
    format = torch.channels_last_3d
    return y.contiguous(memory_format=format), place.to(torch.uint8).contiguous(memory_format=format)


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
    out = gy_NCTHW.shape[2:]
    with torch.enable_grad():
        x = torch.zeros(gx.shape, dtype=_wide(gx).dtype, device=gx.device, requires_grad=True)
        windows = _windows(_padded(x, out, kernel, stride, before), kernel, stride)[:, :, : out[0], : out[1], : out[2]]
        chosen = windows.gather(-1, places_NCTHW.long()[..., None])[..., 0]
    (grad,) = torch.autograd.grad(chosen, x, _wide(gy_NCTHW))
    gx.copy_(grad + gx if adds else grad)


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
    """Gradient of `norm_relu_out(max_pool(x))` by x, the statistics being those of the whole x, into `gx`; returns the
    bias's. `pooled_NCTHW` is what `max_pool` gave.
    """
    xhat = _normalised(pooled_NCTHW, mean_GC, inv_std_GC)
    is_off = xhat + bias_C[:, None, None, None] <= 0
    passed = _grouped(_wide(gy_NCTHW), len(mean_GC)).masked_fill(is_off, 0)
    count, over = x_NCTHW[:, 0].numel() / len(mean_GC), (1, 3, 4, 5)
    spread = torch.empty_like(_wide(x_NCTHW))
    max_pool_backward_out(passed.flatten(0, 1), places_NCTHW, kernel, stride, before, False, spread)
    mean, slope = (v.sum(over, keepdim=True) / count for v in (passed, passed * xhat))
    centred = _grouped(spread, len(mean_GC)) - mean - _normalised(x_NCTHW, mean_GC, inv_std_GC) * slope
    gx.copy_((centred * _per_channel(inv_std_GC)).flatten(0, 1))
    return passed.sum((0, *over))
