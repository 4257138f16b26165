"""I3D's training forward and backward by hand, over the operators of `mmsada_kernels.layers`.

It computes what the modules of `mmsada_hpc.model.i3d` compute, and spares memory traffic:
- the three 1x1x1 convolutions that read a block's input are one, and their gradients leave by slices;
- every branch writes where the block joins them, so nothing is concatenated;
- of a unit only the convolution's output is kept: batch norm and ReLU are one pass, computed again in the backward
  where the next convolution needs its input for the gradient of its weight;
- a pool that follows a unit runs before its batch norm. Both are monotone, so the maxima are the same, and the
  normalised map exists at the pooled size alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmsada_hpc.model.batch_norm import EPS
from mmsada_hpc.model.convolution import (
    Triple,
    convolve,
    convolve_backward,
    ndhwc,
    pad_to_same,
    same_paddings,
    without_autocast,
)
from mmsada_kernels import layers


class Pool(NamedTuple):
    """A max pool with SAME padding."""

    kernel: Triple
    stride: Triple

    def before(self, x_NCTHW: Tensor) -> list[int]:
        """Places of padding in front of T, H and W."""
        return [before for before, _ in same_paddings(x_NCTHW.shape[2:], self.kernel, self.stride)]

    def forward(self, x_NCTHW: Tensor) -> tuple[Tensor, Tensor]:
        """The maxima and their places."""
        return layers.max_pool(x_NCTHW, self.kernel, self.stride, self.before(x_NCTHW))

    def add_backward(self, gy_NCTHW: Tensor, places_NCTHW: Tensor, gx_NCTHW: Tensor) -> None:
        """Add the input's gradient to what `gx_NCTHW` holds."""
        before = self.before(gx_NCTHW)
        layers.max_pool_backward_out(gy_NCTHW, places_NCTHW, self.kernel, self.stride, before, True, gx_NCTHW)


@dataclass(frozen=True)
class Plan:
    """What a unit or a block computes beside its tensors."""

    groups: int
    """Batch-norm groups of the micro-batch."""
    dtype: torch.dtype
    """Of products and activations."""
    pool: Pool | None = None
    """What follows, where nothing else reads the output."""
    kernel: int = 1
    stride: int = 1


class Layout(NamedTuple):
    """How a parameter lies in memory, so that its gradient is made in the form it is kept in: autograd and DDP copy any
    other, strides of axes of one place included.
    """

    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, parameter: Tensor) -> "Layout":
        return cls(parameter.stride(), parameter.dtype)

    def take(self, gradient: Tensor) -> Tensor:
        """The gradient of a product's operand as that of the parameter."""
        out = torch.empty_strided(gradient.shape, self.stride, dtype=self.dtype, device=gradient.device)
        return out.copy_(gradient)


def _like(x_NCTHW: Tensor) -> Tensor:
    return torch.empty(x_NCTHW.shape, dtype=x_NCTHW.dtype, device=x_NCTHW.device, memory_format=torch.channels_last_3d)


class Normed(NamedTuple):
    """A convolution's output with the batch norm that is to follow it; `pooled` and `places` where a pool follows."""

    raw: Tensor
    mean_GC: Tensor
    inv_std_GC: Tensor
    bias_C: Tensor
    pooled: Tensor | None = None
    places: Tensor | None = None

    def cut(self, start: int, stop: int, pool: Pool | None = None) -> "Normed":
        """A range of its channels, pooled or not."""
        raw = self.raw[:, start:stop]
        mean_GC, inv_std_GC = (x[:, start:stop].contiguous() for x in (self.mean_GC, self.inv_std_GC))
        pooled, places = pool.forward(raw) if pool else (None, None)
        return Normed(raw, mean_GC, inv_std_GC, self.bias_C[start:stop], pooled, places)

    def write(self, out: Tensor) -> None:
        """Normalised, behind the ReLU."""
        from_ = self.raw if self.pooled is None else self.pooled
        layers.norm_relu_out(from_, self.mean_GC, self.inv_std_GC, self.bias_C, out)

    def value(self) -> Tensor:
        """As `write`, in memory of its own."""
        out = _like(self.raw if self.pooled is None else self.pooled)
        self.write(out)
        return out

    def backward(self, gy: Tensor, out: Tensor, pool: Pool | None = None) -> Tensor:
        """The gradient of `raw` into `out`; returns the bias's."""
        statistics = (self.mean_GC, self.inv_std_GC, self.bias_C)
        if pool is None:
            return layers.norm_relu_backward_out(gy, self.raw, *statistics, out)
        assert self.pooled is not None and self.places is not None
        return layers.norm_relu_pool_backward_out(
            gy, self.pooled, self.places, self.raw, *statistics, pool.kernel, pool.stride, pool.before(self.raw), out
        )


class Statistics(NamedTuple):
    """Mean and biased variance of a unit's groups, for the running statistics."""

    mean_GC: Tensor
    var_GC: Tensor


def _normed(raw_NCTHW: Tensor, bias_C: Tensor, groups: int) -> tuple[Normed, Statistics]:
    mean_GC, var_GC = layers.group_statistics(raw_NCTHW, groups)
    return Normed(raw_NCTHW, mean_GC, (var_GC + EPS).rsqrt(), bias_C), Statistics(mean_GC, var_GC)


def _same(x_NCTHW: Tensor, weight: Tensor) -> Tensor:
    return convolve(x_NCTHW, weight, stride=(1, 1, 1), padding=[k // 2 for k in weight.shape[2:]])


def _same_backward(gy: Tensor, x_NCTHW: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    padding = [k // 2 for k in weight.shape[2:]]
    gx, gw = convolve_backward(gy, x_NCTHW, weight, stride=(1, 1, 1), padding=padding)
    assert gx is not None
    return gx, gw


class UnitFunction(torch.autograd.Function):
    """Convolution, batch norm, ReLU, and the pool that may follow."""

    @staticmethod
    def forward(ctx: Any, x_NCTHW: Tensor, weight: Tensor, bias_C: Tensor, plan: Plan) -> tuple[Tensor, ...]:
        with without_autocast(x_NCTHW):
            kernel, stride = (plan.kernel,) * 3, (plan.stride,) * 3
            ctx.layout = Layout.of(weight)
            padded, padding = pad_to_same(ndhwc(x_NCTHW), kernel, stride, dtype=plan.dtype)
            weight = weight.to(plan.dtype)
            whole, statistics = _normed(
                convolve(padded, weight, stride=stride, padding=padding), bias_C.detach(), plan.groups
            )
            normed = whole.cut(0, len(bias_C), plan.pool)
            y = normed.value()
        ctx.plan, ctx.padding, ctx.shape = plan, padding, x_NCTHW.shape
        ctx.save_for_backward(padded, weight, *normed)
        ctx.mark_non_differentiable(*statistics)
        return y, *statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x_NCTHW, weight, *saved = ctx.saved_tensors
        plan, normed = ctx.plan, Normed(*saved)
        kernel, stride = (plan.kernel,) * 3, (plan.stride,) * 3
        with without_autocast(gy):
            g_raw = _like(normed.raw)
            g_bias = normed.backward(ndhwc(gy), g_raw, plan.pool)
            needs_input = ctx.needs_input_grad[0]
            gx, gw = convolve_backward(
                g_raw, x_NCTHW, weight, stride=stride, padding=ctx.padding, needs_input=needs_input
            )
        if gx is not None and gx.shape != ctx.shape:  # what was padded
            for axis, pads in enumerate(same_paddings(ctx.shape[2:], kernel, stride), start=2):
                gx = gx.narrow(axis, pads[0], ctx.shape[axis])
        return gx, ctx.layout.take(gw), g_bias, None


class MixedFunction(torch.autograd.Function):
    """An inception block: 1x1x1 convolutions b0, b1a, b2a as one, b1b and b2b behind them, the pooled branch b3b; all
    joined along the channels, and the pool that may follow.
    """

    @staticmethod
    def forward(ctx: Any, x_NCTHW: Tensor, plan: Plan, *parameters: Tensor) -> tuple[Tensor, ...]:
        """`parameters`: the weights of b0, b1a, b1b, b2a, b2b, b3b, then their biases."""
        w0, w1a, w1b, w2a, w2b, w3b = (w.to(plan.dtype) for w in parameters[:6])
        c0, c1a, c1b, c2a, c2b, c3b = (b.detach() for b in parameters[6:])
        sizes = [len(c0), len(c1b), len(c2b), len(c3b)]
        with without_autocast(x_NCTHW):
            merged = torch.cat([w0, w1a, w2a])
            first, s_first = _normed(_same(x_NCTHW, merged), torch.cat([c0, c1a, c2a]), plan.groups)
            n0, n1a, n2a = _cut(first, [len(c0), len(c1a), len(c2a)], [plan.pool, None, None])
            n1b, s1b = _normed(_same(n1a.value(), w1b), c1b, plan.groups)
            n2b, s2b = _normed(_same(n2a.value(), w2b), c2b, plan.groups)
            pooled, places = _INNER.forward(x_NCTHW)
            n3b, s3b = _normed(_same(pooled, w3b), c3b, plan.groups)
            n1b, n2b, n3b = (n.cut(0, len(n.bias_C), plan.pool) for n in (n1b, n2b, n3b))
            y = _joined([n0, n1b, n2b, n3b], sizes)
        ctx.plan, ctx.sizes, ctx.layouts = plan, sizes, [Layout.of(w) for w in parameters[:6]]
        units = (n0, n1a, n1b, n2a, n2b, n3b)
        ctx.save_for_backward(x_NCTHW, pooled, places, first.raw, merged, w1b, w2b, w3b, *(t for n in units for t in n))
        statistics = (*s_first, *s1b, *s2b, *s3b)
        ctx.mark_non_differentiable(*statistics)
        return y, *statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x_NCTHW, pooled, places, raw, merged, w1b, w2b, w3b, *saved = ctx.saved_tensors
        width = len(Normed._fields)
        units = [Normed(*saved[i : i + width]) for i in range(0, len(saved), width)]
        n0, n1a, n1b, n2a, n2b, n3b = units
        pool: Pool | None = ctx.plan.pool
        with without_autocast(gy):
            gy = ndhwc(gy)  # the last block's is an expanded mean
            gy0, gy1, gy2, gy3 = gy.split(ctx.sizes, dim=1)
            g_first = _like(raw)
            g0, g1a, g2a = g_first.split([n.raw.shape[1] for n in (n0, n1a, n2a)], dim=1)
            b0 = n0.backward(gy0, g0, pool)
            b1b, b1a, gw1b = _branch_backward(gy1, n1b, n1a, w1b, g1a, pool)
            b2b, b2a, gw2b = _branch_backward(gy2, n2b, n2a, w2b, g2a, pool)
            gx, g_merged = _same_backward(g_first, x_NCTHW, merged)
            g3 = _like(n3b.raw)
            b3b = n3b.backward(gy3, g3, pool)
            g_pooled, gw3b = _same_backward(g3, pooled, w3b)
            _INNER.add_backward(g_pooled, places, gx)
        gw0, gw1a, gw2a = g_merged.split([g.shape[1] for g in (g0, g1a, g2a)])
        weights = [layout.take(gw) for layout, gw in zip(ctx.layouts, (gw0, gw1a, gw1b, gw2a, gw2b, gw3b), strict=True)]
        return gx, None, *weights, b0, b1a, b1b, b2a, b2b, b3b


_INNER = Pool((3, 3, 3), (1, 1, 1))


def _cut(whole: Normed, sizes: Sequence[int], pools: Sequence[Pool | None]) -> list[Normed]:
    found, start = [], 0
    for size, pool in zip(sizes, pools, strict=True):
        found.append(whole.cut(start, start + size, pool))
        start += size
    return found


def _joined(parts: Sequence[Normed], sizes: Sequence[int]) -> Tensor:
    """All parts, each written where it belongs among the channels."""
    like = parts[0].raw if parts[0].pooled is None else parts[0].pooled
    shape = (like.shape[0], sum(sizes), *like.shape[2:])
    y = torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last_3d)
    for part, out in zip(parts, y.split(list(sizes), dim=1), strict=True):
        part.write(out)
    return y


def _branch_backward(
    gy: Tensor, outer: Normed, inner: Normed, weight: Tensor, g_inner: Tensor, pool: Pool | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Through a 3x3x3 unit and the 1x1x1 unit in front of it, whose gradient goes into `g_inner`; returns the
    gradients of both biases and of the weight.
    """
    g_outer = _like(outer.raw)
    outer_bias = outer.backward(gy, g_outer, pool)
    g_value, g_weight = _same_backward(g_outer, inner.value(), weight)
    return outer_bias, inner.backward(g_value, g_inner), g_weight
