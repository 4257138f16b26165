"""Inception-v1 I3D with the semantics of the Sonnet original (spec 1.1): SAME padding, batch norm without scale, ReLU.

Up to the 1024-d feature, the average of the last map (over `[2, 7, 7]` for 16 x 224 x 224); the classifier is a head.
"""

import torch
from torch import Tensor, nn

from mmsada_hpc.model.batch_norm import GroupBatchNorm, GroupContext
from mmsada_hpc.model.convolution import SameConv3d, Triple, ndhwc, same_paddings, without_autocast
from mmsada_hpc.model.fused import MixedFunction, Plan, Pool, UnitFunction
from mmsada_hpc.model.inference import convolve_relu, folded
from mmsada_kernels import layers

# Channels of each block's branches: b0, b1a, b1b, b2a, b2b, b3b (spec 1.1).
MIXED = {
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


class SameMaxPool3d(nn.Module):
    """Max pool with SAME padding. Inputs are after ReLU, so padding by minus infinity is padding by zero.

    Lopsided padding is always (0, 1) here, and that is what `ceil_mode` does: the last window is cut.
    """

    def __init__(self, kernel: Triple, stride: Triple) -> None:
        super().__init__()
        self.plan = Pool(kernel, stride)

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        pads = same_paddings(x_NCTHW.shape[2:], *self.plan)
        assert all(after - before in (0, 1) and (before == after or before == 0) for before, after in pads)
        return nn.functional.max_pool3d(x_NCTHW, *self.plan, tuple(before for before, _ in pads), ceil_mode=True)

    def infer(self, x_NCTHW: Tensor) -> Tensor:
        """`forward` without autograd."""
        compiled = layers.is_compiled(x_NCTHW.device, x_NCTHW.dtype)
        return self.plan.forward(x_NCTHW)[0] if compiled else self(x_NCTHW)


class Unit3d(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(
        self, channels_in: int, channels_out: int, context: GroupContext, *, kernel: int = 1, stride: int = 1
    ) -> None:
        super().__init__()
        self.conv3d = SameConv3d(channels_in, channels_out, kernel, stride)
        self.bn = GroupBatchNorm(channels_out, context)

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        return nn.functional.relu(self.bn(self.conv3d(x_NCTHW)), inplace=True)

    def train_fused(self, x_NCTHW: Tensor, dtype: torch.dtype, pool: Pool | None) -> Tensor:
        """`forward` in training, and the pool behind it, by hand."""
        groups = self.bn.context.groups(len(x_NCTHW))
        plan = Plan(groups, dtype, pool, kernel=self.conv3d.kernel_size[0], stride=self.conv3d.stride[0])
        y_NCTHW, *statistics = UnitFunction.apply(x_NCTHW, self.conv3d.weight, self.bn.bias, plan)
        self.bn.record(*statistics)
        return y_NCTHW

    def infer(self, x_NCTHW: Tensor) -> Tensor:
        """`forward` at test, without autograd."""
        return convolve_relu(x_NCTHW, *folded([self.conv3d], [self.bn]), stride=self.conv3d.stride[0])


class Mixed(nn.Module):
    """An inception block of four branches, joined along the channels."""

    def __init__(self, channels_in: int, branches: tuple[int, ...], context: GroupContext) -> None:
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3b = branches
        self.b0 = Unit3d(channels_in, b0, context)
        self.b1a = Unit3d(channels_in, b1a, context)
        self.b1b = Unit3d(b1a, b1b, context, kernel=3)
        self.b2a = Unit3d(channels_in, b2a, context)
        self.b2b = Unit3d(b2a, b2b, context, kernel=3)
        self.pool = SameMaxPool3d((3, 3, 3), (1, 1, 1))
        self.b3b = Unit3d(channels_in, b3b, context)

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        branches = [
            self.b0(x_NCTHW),
            self.b1b(self.b1a(x_NCTHW)),
            self.b2b(self.b2a(x_NCTHW)),
            self.b3b(self.pool(x_NCTHW)),
        ]
        return torch.cat(branches, dim=1)

    def infer(self, x_NCTHW: Tensor) -> Tensor:
        """`forward` at test, without autograd."""
        merged = (self.b0, self.b1a, self.b2a)
        first = convolve_relu(x_NCTHW, *folded([u.conv3d for u in merged], [u.bn for u in merged]))
        b0, b1a, b2a = first.split([len(u.bn.bias) for u in merged], dim=1)
        return torch.cat(
            [b0, self.b1b.infer(ndhwc(b1a)), self.b2b.infer(ndhwc(b2a)), self.b3b.infer(self.pool.infer(x_NCTHW))],
            dim=1,
        )

    def train_fused(self, x_NCTHW: Tensor, dtype: torch.dtype, pool: Pool | None) -> Tensor:
        """`forward` in training, and the pool behind it, by hand."""
        units = (self.b0, self.b1a, self.b1b, self.b2a, self.b2b, self.b3b)
        plan = Plan(self.b0.bn.context.groups(len(x_NCTHW)), dtype, pool)
        weights, biases = [u.conv3d.weight for u in units], [u.bn.bias for u in units]
        y_NCTHW, mean, var, *rest = MixedFunction.apply(x_NCTHW, plan, *weights, *biases)
        merged = (self.b0, self.b1a, self.b2a)
        sizes = [len(u.bn.bias) for u in merged]
        for unit, *statistics in zip(merged, mean.split(sizes, dim=1), var.split(sizes, dim=1), strict=True):
            unit.bn.record(*statistics)
        for index, unit in enumerate((self.b1b, self.b2b, self.b3b)):
            unit.bn.record(*rest[2 * index : 2 * index + 2])
        return y_NCTHW


class I3d(nn.Module):
    """`(N, C, T, H, W)` in [-1, 1) to `(N, feature_size)`."""

    def __init__(self, channels_in: int, context: GroupContext, *, width: float = 1.0) -> None:
        """Args:
        channels_in: 3 for RGB, 2 for flow.
        width: multiplier on every channel count, rounded to multiples of 4.
        """
        super().__init__()

        def scaled(channels: int) -> int:
            return max(4, round(channels * width / 4) * 4)

        self.Conv3d_1a_7x7 = Unit3d(channels_in, scaled(64), context, kernel=7, stride=2)
        self.MaxPool3d_2a_3x3 = SameMaxPool3d((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1 = Unit3d(scaled(64), scaled(64), context)
        self.Conv3d_2c_3x3 = Unit3d(scaled(64), scaled(192), context, kernel=3)
        self.MaxPool3d_3a_3x3 = SameMaxPool3d((1, 3, 3), (1, 2, 2))
        channels = scaled(192)
        for name, branches in MIXED.items():
            if name == "Mixed_4b":
                self.MaxPool3d_4a_3x3 = SameMaxPool3d((3, 3, 3), (2, 2, 2))
            if name == "Mixed_5b":
                self.MaxPool3d_5a_2x2 = SameMaxPool3d((2, 2, 2), (2, 2, 2))
            block = tuple(scaled(branch) for branch in branches)
            setattr(self, name, Mixed(channels, block, context))
            channels = block[0] + block[2] + block[4] + block[5]
        self.feature_size = channels
        self.fuses = True
        """Whether the forms written by hand may be taken: `model.fused` in training, `model.inference` at test."""

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        dtype = _product_dtype(x_NCTHW)
        takes = self.Conv3d_1a_7x7.bn.bias.dtype == torch.float32 and layers.is_compiled(x_NCTHW.device, dtype)
        if self.fuses and self.training and takes:
            x_NCTHW = self._train_fused(x_NCTHW, dtype)
        elif self.fuses and not self.training and not torch.is_grad_enabled():
            x_NCTHW = self._infer(x_NCTHW, dtype)
        else:
            for layer in self._layers():
                x_NCTHW = layer(x_NCTHW)
        return x_NCTHW.mean(dim=(2, 3, 4))

    def _layers(self) -> list[Unit3d | Mixed | SameMaxPool3d]:
        """In the order of their creation, which is the network's."""
        return [layer for layer in self.children() if isinstance(layer, Unit3d | Mixed | SameMaxPool3d)]

    def _train_fused(self, x_NCTHW: Tensor, dtype: torch.dtype) -> Tensor:
        layers_ = self._layers()
        for layer, following in zip(layers_, [*layers_[1:], None], strict=True):
            if not isinstance(layer, SameMaxPool3d):
                pool = following.plan if isinstance(following, SameMaxPool3d) else None
                x_NCTHW = layer.train_fused(x_NCTHW, dtype, pool)
        return x_NCTHW

    def _infer(self, x_NCTHW: Tensor, dtype: torch.dtype) -> Tensor:
        x_NCTHW = ndhwc(x_NCTHW.to(dtype))
        with without_autocast(x_NCTHW):
            for layer in self._layers():
                x_NCTHW = layer.infer(x_NCTHW)
        return x_NCTHW


def _product_dtype(x: Tensor) -> torch.dtype:
    """What convolutions would compute in here."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype
