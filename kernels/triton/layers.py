"""The layers between convolutions on a GPU: the six functions of `mmsada_kernels.layers` (definitions:
`layers_reference`).

Not run on a GPU yet: run in Triton's interpreter and compiled for sm_80 and sm_90.

bf16, fp16 and fp32 in and out, fp32 in between. Shapes alone decide what is launched and nothing waits for the device,
so it can be captured in a CUDA graph. Equal inputs give equal bits.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from mmsada_kernels.triton import layers_kernels as kernels

INTERPRETED = not isinstance(kernels.moments, triton.JITFunction)
"""Whether TRITON_INTERPRET was set when triton was imported: tensors are then of the CPU."""

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
PROGRAMS = 2048
"""About as many programs share a pass over rows: some 15 for each of a large GPU's multiprocessors."""
TILE = 2048
"""Elements that a program of a pass over rows holds at once; half of it where windows are looked into."""
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


def group_statistics(x_NCTHW: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every group and channel, `(G, C)` each, fp32."""
    x, channels = _rows("x", x_NCTHW), x_NCTHW.shape[1]
    if groups < 1 or len(x_NCTHW) % groups:
        raise ValueError(f"groups: {len(x_NCTHW)} clips are not {groups} groups")
    over = _passes(x.count // groups, groups, channels)
    partial = _floats(x_NCTHW, over["grid"][0], 2, channels)
    mean, var = _floats(x_NCTHW, groups, channels), _floats(x_NCTHW, groups, channels)
    rows = (x.count // groups, over["span"], x.stride)
    launch(kernels.moments, over["grid"], x_NCTHW, partial, *rows, **over["constants"])
    end = _ends(channels)
    launch(kernels.statistics, (groups, end["blocks"]), x_NCTHW, partial, mean, var, *rows, **end["constants"])
    return mean, var


def norm_relu_out(x_NCTHW: Tensor, mean_GC: Tensor, inv_std_GC: Tensor, bias_C: Tensor, out: Tensor) -> None:
    """`relu((x - mean) * inv_std + bias)` into `out`, which may be a channel slice."""
    x, to = _rows("x", x_NCTHW), _rows("out", out, like=x_NCTHW)
    groups = _check_norm(x_NCTHW, mean_GC, inv_std_GC, bias_C)
    over = _passes(x.count // groups, groups, x_NCTHW.shape[1])
    launch(
        kernels.norm_relu, over["grid"], x_NCTHW, mean_GC, inv_std_GC, bias_C, out,
        x.count // groups, over["span"], x.stride, to.stride, **over["constants"],
    )  # fmt: skip


def norm_relu_backward_out(
    gy_NCTHW: Tensor, x_NCTHW: Tensor, mean_GC: Tensor, inv_std_GC: Tensor, bias_C: Tensor, gx: Tensor
) -> Tensor:
    """Gradient of `norm_relu_out` whose mean and variance were x's own, into `gx`; returns the bias's."""
    x, to = _rows("x", x_NCTHW), _rows("gx", gx, like=x_NCTHW)
    norm = (mean_GC, inv_std_GC, bias_C)
    means, grad_bias = _passed(gy_NCTHW, x_NCTHW, norm, kept=None, per_group=None)
    groups = len(mean_GC)
    over = _passes(x.count // groups, groups, x_NCTHW.shape[1])
    launch(
        kernels.norm_relu_backward, over["grid"], gy_NCTHW, x_NCTHW, *norm, means, gx,
        x.count // groups, over["span"], _rows("gy", gy_NCTHW).stride, x.stride, to.stride, **over["constants"],
    )  # fmt: skip
    return grad_bias


def max_pool(
    x_NCTHW: Tensor, kernel: Sequence[int], stride: Sequence[int], before: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Max pool to ceil(size / stride), and as uint8 the place of the first maximum in each window."""
    x, (clips, channels, *sizes) = _rows("x", x_NCTHW), x_NCTHW.shape
    out = [-(-size // s) for size, s in zip(sizes, stride, strict=True)]
    y, places = (
        torch.empty((clips, channels, *out), dtype=dtype, device=x_NCTHW.device, memory_format=torch.channels_last_3d)
        for dtype in (x_NCTHW.dtype, torch.uint8)
    )
    window = _window(sizes, out, kernel, stride, before)
    rows = clips * out[0] * out[1] * out[2]
    block = _block(channels, TILE // 2)
    grid = (triton.cdiv(rows, block["BLOCK_R"]), triton.cdiv(channels, block["BLOCK_C"]))
    launch(kernels.max_pool, grid, x_NCTHW, y, places, rows, x.stride, *sizes, *out, **window, **block, **OPTIONS)
    return y, places


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
    _gather(gy_NCTHW, places_NCTHW, (kernel, stride, before), gx, adds=adds)


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
    _rows("gx", gx, like=x_NCTHW)
    kept = torch.empty_like(gy_NCTHW, memory_format=torch.channels_last_3d)
    per_group = _rows("x", x_NCTHW).count // len(mean_GC)
    means, grad_bias = _passed(gy_NCTHW, pooled_NCTHW, (mean_GC, inv_std_GC, bias_C), kept=kept, per_group=per_group)
    _gather(kept, places_NCTHW, (kernel, stride, before), gx, norm=(x_NCTHW, mean_GC, inv_std_GC, means))
    return grad_bias


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """The one place a kernel is started from, on the device of its tensors, which need not be the current one."""
    with torch.cuda.device_of(args[0]):
        kernel[grid](*args, **options)


class _Rows:
    """A channels_last_3d tensor, or a channel slice of one, as rows of channels."""

    def __init__(self, x: Tensor) -> None:
        self.count = x.shape[0] * x.shape[2] * x.shape[3] * x.shape[4]
        axes = [axis for axis in (4, 3, 2, 0) if x.shape[axis] > 1]  # an axis of size 1 may have any stride
        self.stride = x.stride(axes[0]) if axes else x.shape[1]
        place = self.stride
        self.is_regular = x.stride(1) == 1 or x.shape[1] == 1
        for axis in axes:
            self.is_regular &= x.stride(axis) == place
            place *= x.shape[axis]


def _rows(name: str, x_NCTHW: Tensor, like: Tensor | None = None) -> _Rows:
    """How `x_NCTHW` lies in memory.

    Raises:
        ValueError: not as these kernels take it; or not of the shape and type of `like`.
    """
    if x_NCTHW.dim() != 5 or x_NCTHW.dtype not in FLOATS:
        raise ValueError(f"{name}: expected (N, C, T, H, W) of {', '.join(map(str, FLOATS))}, got {_told(x_NCTHW)}")
    if like is not None and (x_NCTHW.shape, x_NCTHW.dtype) != (like.shape, like.dtype):
        raise ValueError(f"{name}: expected {_told(like)}, got {_told(x_NCTHW)}")
    if x_NCTHW.device.type != ("cpu" if INTERPRETED else "cuda"):
        raise ValueError(f"{name}: on {x_NCTHW.device.type}; these kernels are for {'cpu' if INTERPRETED else 'cuda'}")
    rows = _Rows(x_NCTHW)
    if rows.count >= 2**31:
        raise ValueError(f"{name}: {rows.count} rows are more than these kernels count; use a smaller micro-batch")
    if not rows.is_regular:
        raise ValueError(f"{name}: expected channels_last_3d memory, got the strides {x_NCTHW.stride()}")
    return rows


def _told(x: Tensor) -> str:
    return f"{tuple(x.shape)} of {x.dtype}"


def _check_norm(x_NCTHW: Tensor, mean_GC: Tensor, inv_std_GC: Tensor, bias_C: Tensor) -> int:
    """The number of groups."""
    groups, channels = len(mean_GC), x_NCTHW.shape[1]
    wanted = (("mean", mean_GC, (groups, channels)), ("inv_std", inv_std_GC, (groups, channels)),
              ("bias", bias_C, (channels,)))  # fmt: skip
    for name, tensor, shape in wanted:
        if tensor.shape != shape or tensor.dtype != torch.float32 or not tensor.is_contiguous():
            raise ValueError(f"{name}: expected {shape} of contiguous float32, got {_told(tensor)}")
    if not groups or len(x_NCTHW) % groups:
        raise ValueError(f"mean: {len(x_NCTHW)} clips are not {groups} groups")
    return groups


def _floats(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=torch.float32)


def _block(channels: int, tile: int) -> dict[str, int]:
    width = min(64, max(4, triton.next_power_of_2(channels)))
    return {"C": channels, "BLOCK_R": tile // width, "BLOCK_C": width}


def _passes(rows: int, groups: int, channels: int, tile: int = TILE) -> dict[str, Any]:
    """Grid, span and constants of a pass over `groups` times `rows` rows; shapes alone decide."""
    block = _block(channels, tile)
    blocks = triton.cdiv(channels, block["BLOCK_C"])
    tiles = triton.cdiv(rows, block["BLOCK_R"])
    span = block["BLOCK_R"] * triton.cdiv(tiles, max(1, PROGRAMS // (groups * blocks)))
    grid = (groups * triton.cdiv(rows, span), blocks)
    return {"grid": grid, "span": span, "constants": {**block, **OPTIONS}}


def _ends(channels: int) -> dict[str, Any]:
    """Blocks and constants of a kernel that adds up the programs' sums."""
    return {"blocks": triton.cdiv(channels, 16), "constants": {"C": channels, "BLOCK_P": 32, "BLOCK_C": 16, **OPTIONS}}


def _window(
    sizes: Sequence[int], out: Sequence[int], kernel: Sequence[int], stride: Sequence[int], before: Sequence[int]
) -> dict[str, int]:
    """Constants of a pool's windows."""
    if kernel[0] * kernel[1] * kernel[2] > 255:
        raise ValueError(f"max_pool: a window of {tuple(kernel)} has more than 255 places")
    for size, o, k, s, b in zip(sizes, out, kernel, stride, before, strict=True):
        if b >= k or (o - 1) * s - b >= size:
            raise ValueError("max_pool: a window would lie outside its input")
    return {
        f"{letter}{axis}": value
        for letter, values in (("K", kernel), ("S", stride), ("B", before))
        for axis, value in zip("THW", values, strict=True)
    }


def _passed(
    gy_NCTHW: Tensor, x_NCTHW: Tensor, norm: tuple[Tensor, Tensor, Tensor], kept: Tensor | None, per_group: int | None
) -> tuple[Tensor, Tensor]:
    """Per group the mean of the gradient that the ReLU lets pass, and of it times the normalised input, `(G, 2, C)`,
    over `per_group` rows (those of x where None); and the bias's gradient.
    """
    x, gy = _rows("x", x_NCTHW), _rows("gy", gy_NCTHW, like=x_NCTHW)
    groups, channels = _check_norm(x_NCTHW, *norm), x_NCTHW.shape[1]
    over = _passes(x.count // groups, groups, channels)
    partial = _floats(x_NCTHW, over["grid"][0], 2, channels)
    launch(
        kernels.passed_sums, over["grid"], gy_NCTHW, x_NCTHW, *norm, kept, partial,
        x.count // groups, over["span"], gy.stride, x.stride, channels, **over["constants"],
    )  # fmt: skip
    means, grad_bias, end = _floats(x_NCTHW, groups, 2, channels), _floats(x_NCTHW, channels), _ends(channels)
    launch(
        kernels.means, (end["blocks"],), partial, means, grad_bias,
        over["grid"][0] // groups, per_group or x.count // groups, G=groups, **end["constants"],
    )  # fmt: skip
    return means, grad_bias


def _gather(
    gy_NCTHW: Tensor,
    places_NCTHW: Tensor,
    pool: tuple[Sequence[int], Sequence[int], Sequence[int]],
    gx: Tensor,
    *,
    adds: bool = False,
    norm: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
) -> None:
    """Backward of a pool and, with x, mean, inv_std and `means`, of the batch norm in front of it."""
    gy, to, (_, channels, *sizes) = _rows("gy", gy_NCTHW), _rows("gx", gx), gx.shape
    out = list(gy_NCTHW.shape[2:])
    if gy_NCTHW.dtype != gx.dtype:
        raise ValueError(f"gy: expected {gx.dtype}, got {gy_NCTHW.dtype}")
    if places_NCTHW.shape != gy_NCTHW.shape or not places_NCTHW.is_contiguous(memory_format=torch.channels_last_3d):
        raise ValueError("places: expected what max_pool gave for an output like gy")
    x, mean, inv_std, means = norm or (None,) * 4
    groups = 1 if mean is None else len(mean)
    over = _passes(to.count // groups, groups, channels, TILE // 2)
    x_stride = channels if x is None else _rows("x", x).stride
    launch(
        kernels.max_pool_backward, over["grid"], gy_NCTHW, places_NCTHW, x, mean, inv_std, means, gx,
        to.count // groups, over["span"], gy.stride, x_stride, to.stride, *sizes, *out,
        ADDS=adds, **_window(sizes, out, *pool), **over["constants"],
    )  # fmt: skip
