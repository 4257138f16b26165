"""Every candidate for a faster step alone, on the map of I3D where it matters most: PyTorch's way against ours."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmsada_hpc.bench.device import settings, timer
from mmsada_hpc.bench.rows import Report, interleaved, row
from mmsada_hpc.bench.step_child import run_steps
from mmsada_hpc.bench.step_model import Form, Shape
from mmsada_hpc.model.convolution import convolve, convolve_backward
from mmsada_kernels import layers

_NDHWC = torch.channels_last_3d


class Candidate(NamedTuple):
    """Two ways to one result."""

    name: str
    plain: Callable[[], object]
    ours: Callable[[], object]


def measure(shape: Shape, device: torch.device, repeats: int, report: Report) -> None:
    """Milliseconds of every candidate and of what it replaces, in turn."""
    for name, plain, ours in _candidates(shape, device):
        ways = {"plain": timer(plain, device), "ours": timer(ours, device)}
        for measure_once in ways.values():
            measure_once()
        seconds = interleaved(ways, max(repeats, 5))
        found = {way: [1000 * s for s in values] for way, values in seconds.items()}
        _add(name, found, device, report)
    if device.type == "cpu":
        _allocator(shape, device, repeats, report)


def _allocator(shape: Shape, device: torch.device, repeats: int, report: Report) -> None:
    """A whole step in processes that give freed memory back to the kernel, as glibc does, and in such as keep it."""
    for form in (Form("modules", bf16=True), Form("fused", bf16=True)):
        ways = {way: partial(_step_ms, shape, form, device, keeps_freed=way == "ours") for way in ("plain", "ours")}
        found = interleaved(ways, repeats)
        _add(f"freed memory kept, step {form} {shape}", found, device, report)


def _add(name: str, found: Mapping[str, Sequence[float]], device: torch.device, report: Report) -> None:
    told = settings(device)
    baseline = row("step", f"plain, {name}", found["plain"], "ms", better="lower", details=told)
    report.add(baseline)
    report.add(row("step", f"ours, {name}", found["ours"], "ms", better="lower", baseline=baseline, details=told))


def _step_ms(shape: Shape, form: Form, device: torch.device, *, keeps_freed: bool) -> float:
    return 1000 * min(run_steps(shape, form, device, count=2, keeps_freed=keeps_freed).seconds)


def _candidates(shape: Shape, device: torch.device) -> Iterator[Candidate]:
    n, t, s = shape.clips, shape.frames, shape.size

    def values(channels: int, frames: int, size: int) -> Tensor:
        x = torch.randn(n, channels, frames, size, size, device=device).to(torch.bfloat16)
        return x.contiguous(memory_format=_NDHWC)

    def weight(out: int, channels: int, kernel: int) -> Tensor:
        w = torch.randn(out, channels, kernel, kernel, kernel, device=device).to(torch.bfloat16)
        return w.contiguous(memory_format=_NDHWC)

    yield from _formats(values(64, t // 2, s // 4), weight(192, 64, 3))
    yield _merged(values(256, t // 2, s // 8), [weight(c, 256, 1) for c in (128, 128, 32)])
    yield _small_map(values(832, max(1, t // 8), max(1, s // 32)), weight(624, 832, 1))
    stem = values(64, t // 2, s // 2)
    yield from _norms(stem)
    yield _pool_first(stem)
    yield from _pools("3x3x3 of 192 channels", values(192, t // 2, s // 8), (3, 3, 3), (1, 1, 1), (1, 1, 1))
    yield from _pools("1x3x3 of 64 channels, stride 2", stem, (1, 3, 3), (1, 2, 2), (0, 0, 0))
    yield _joined([values(c, t // 2, s // 8) for c in (128, 192, 96, 64)])
    yield _wider_stem(shape, device)


def _both(x: Tensor, w: Tensor, padding: int) -> Callable[[], object]:
    gy = torch.empty_like(convolve(x, w, stride=(1, 1, 1), padding=(padding,) * 3)).normal_()

    def run() -> object:
        y = convolve(x, w, stride=(1, 1, 1), padding=(padding,) * 3)
        return y, convolve_backward(gy, x, w, stride=(1, 1, 1), padding=(padding,) * 3)

    return run


def _formats(x: Tensor, w: Tensor) -> Iterator[Candidate]:
    """Conv3d_2c, forward and backward."""
    ours = _both(x, w, 1)
    yield Candidate("NDHWC in place of NCDHW, Conv3d_2c", _both(x.contiguous(), w.contiguous(), 1), ours)
    yield Candidate("bf16 in place of fp32, Conv3d_2c", _both(x.float(), w.float(), 1), ours)
    yield Candidate(
        "no copy for padding, Conv3d_2c forward",
        lambda: F.conv3d(F.pad(x, [1] * 6), w),
        lambda: F.conv3d(x, w, padding=1),
    )


def _merged(x: Tensor, weights: list[Tensor]) -> Candidate:
    apart, joined = [_both(x, w, 0) for w in weights], _both(x, torch.cat(weights), 0)
    return Candidate("one 1x1x1 convolution for three, Mixed_3c", lambda: [run() for run in apart], joined)


def _small_map(x: Tensor, w: Tensor) -> Candidate:
    gy = F.conv3d(x, w)
    mask = [True, True, False]
    zeros, ones = [0, 0, 0], [1, 1, 1]

    def torchs() -> object:
        backward = torch.ops.aten.convolution_backward
        return F.conv3d(x, w), backward(gy, x, w, None, ones, zeros, ones, False, zeros, 1, mask)

    return Candidate("a matrix product for 1x1x1 on a small map, Mixed_5", torchs, _both(x, w, 0))


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean_GC, var_GC = layers.group_statistics(x, 1)
    return mean_GC, (var_GC + 1e-3).rsqrt(), torch.zeros(x.shape[1], device=x.device)


def _norms(x: Tensor) -> Iterator[Candidate]:
    one, zero = torch.ones(x.shape[1], device=x.device), torch.zeros(x.shape[1], device=x.device)
    out, gx, gy = torch.empty_like(x), torch.empty_like(x), torch.randn_like(x)

    def torchs_forward() -> tuple[Tensor, Tensor, Tensor]:
        y, mean, inv_std = torch.native_batch_norm(x, one, zero, None, None, True, 0.0, 1e-3)
        return y.relu_(), mean, inv_std

    y, mean, inv_std = torchs_forward()

    def torchs_backward() -> object:
        passed = torch.ops.aten.threshold_backward(gy, y, 0)
        mask = [True, False, True]
        return torch.ops.aten.native_batch_norm_backward(passed, x, one, None, None, mean, inv_std, True, 1e-3, mask)

    statistics = _statistics(x)
    name = "batch norm and ReLU in one pass, Conv3d_1a"
    yield Candidate(f"{name} forward", torchs_forward, lambda: layers.norm_relu_out(x, *_statistics(x), out))
    yield Candidate(f"{name} backward", torchs_backward, lambda: layers.norm_relu_backward_out(gy, x, *statistics, gx))


def _pools(
    name: str, x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], before: tuple[int, ...]
) -> Iterator[Candidate]:
    y, places = layers.max_pool(x, kernel, stride, before)
    gy, gx = torch.randn_like(y), torch.empty_like(x)
    aten, geometry = torch.ops.aten, (kernel, stride, before, (1, 1, 1), True)
    _, indices = aten.max_pool3d_with_indices(x, *geometry)
    yield Candidate(
        f"max pool with byte indices, {name}, forward",
        lambda: aten.max_pool3d_with_indices(x, *geometry),
        lambda: layers.max_pool(x, kernel, stride, before),
    )
    yield Candidate(
        f"max pool with byte indices, {name}, backward",
        lambda: aten.max_pool3d_with_indices_backward(gy, x, *geometry, indices),
        lambda: layers.max_pool_backward_out(gy, places, kernel, stride, before, False, gx),
    )


def _pool_first(x: Tensor) -> Candidate:
    kernel, stride, before = (1, 3, 3), (1, 2, 2), (0, 0, 0)
    statistics = _statistics(x)
    whole, gx = torch.empty_like(x), torch.empty_like(x)
    small, _ = layers.max_pool(x, kernel, stride, before)
    out, gy = torch.empty_like(small), torch.randn_like(small)

    def norm_first() -> None:
        layers.norm_relu_out(x, *statistics, whole)
        _, at = layers.max_pool(whole, kernel, stride, before)
        layers.max_pool_backward_out(gy, at, kernel, stride, before, False, whole)
        layers.norm_relu_backward_out(whole, x, *statistics, gx)

    def pool_first() -> None:
        pooled, at = layers.max_pool(x, kernel, stride, before)
        layers.norm_relu_out(pooled, *statistics, out)
        layers.norm_relu_pool_backward_out(gy, pooled, at, x, *statistics, kernel, stride, before, gx)

    return Candidate("the pool before its batch norm, Conv3d_1a, both ways", norm_first, pool_first)


def _joined(parts: list[Tensor]) -> Candidate:
    sizes = [x.shape[1] for x in parts]
    n, _, *rest = parts[0].shape
    whole = parts[0].new_empty((n, sum(sizes), *rest)).contiguous(memory_format=_NDHWC)
    statistics = [_statistics(x) for x in parts]
    outs = [torch.empty_like(x) for x in parts]

    def concatenated() -> None:
        for x, norm, out in zip(parts, statistics, outs, strict=True):
            layers.norm_relu_out(x, *norm, out)
        torch.cat(outs, dim=1)

    def in_place() -> None:
        for x, norm, out in zip(parts, statistics, whole.split(sizes, dim=1), strict=True):
            layers.norm_relu_out(x, *norm, out)

    return Candidate("branches written where they are joined, Mixed_3c", concatenated, in_place)


def _wider_stem(shape: Shape, device: torch.device) -> Candidate:
    """The stem's forward and weight gradient with one more channel of zeros: tried, and not what the model does."""

    def stem(channels: int) -> Callable[[], object]:
        size = shape.size + 5
        x = torch.randn(shape.clips, channels, shape.frames + 5, size, size, device=device).to(torch.bfloat16)
        w = torch.randn(64, channels, 7, 7, 7, device=device).to(torch.bfloat16).contiguous(memory_format=_NDHWC)
        x = x.contiguous(memory_format=_NDHWC)
        gy = F.conv3d(x, w, stride=2)
        strides, zeros = (2, 2, 2), (0, 0, 0)

        def run() -> object:
            y = convolve(x, w, stride=strides, padding=zeros)
            return y, convolve_backward(gy, x, w, stride=strides, padding=zeros, needs_input=False)

        return run

    return Candidate("RGB stem with 3 channels padded to 4 (not kept)", stem(3), stem(4))
