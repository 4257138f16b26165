"""Inception-v1 I3D with the semantics of the Sonnet original (spec 1.1): SAME padding, batch norm without scale, ReLU.

Up to the 1024-d feature, the average of the last map (over `[2, 7, 7]` for 16 x 224 x 224); the classifier is a head.
"""

import math

import torch
from torch import Tensor, nn

from mmsada_hpc.model.batch_norm import GroupBatchNorm, GroupContext

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
Triple = tuple[int, int, int]


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TF SAME: zeros before and after an axis of `size`; the odd one goes after."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _paddings(x_NCTHW: Tensor, kernel: Triple, stride: Triple) -> list[tuple[int, int]]:
    return [same_padding(n, k, s) for n, k, s in zip(x_NCTHW.shape[2:], kernel, stride, strict=True)]


class SameConv3d(nn.Conv3d):
    """Convolution with SAME padding; copies the input only where the padding is lopsided (the stem at even sizes)."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__(channels_in, channels_out, kernel, stride=stride, bias=False)
        fan_in = channels_in * kernel**3
        nn.init.trunc_normal_(self.weight, std=fan_in**-0.5, a=-2 * fan_in**-0.5, b=2 * fan_in**-0.5)

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        kernel: Triple = self.kernel_size  # type: ignore[assignment]
        stride: Triple = self.stride  # type: ignore[assignment]
        pads = _paddings(x_NCTHW, kernel, stride)
        if any(before != after for before, after in pads):
            x_NCTHW = nn.functional.pad(x_NCTHW, [p for pair in reversed(pads) for p in pair])
            pads = [(0, 0)] * 3
        padding = tuple(before for before, _ in pads)
        if _has_broken_bf16_gradient(x_NCTHW, kernel):
            with torch.autocast("cpu", enabled=False):
                y = nn.functional.conv3d(x_NCTHW.float(), self.weight, None, self.stride, padding)
            return y.to(torch.bfloat16)
        return nn.functional.conv3d(x_NCTHW, self.weight, None, self.stride, padding)


def _has_broken_bf16_gradient(x_NCTHW: Tensor, kernel: Triple) -> bool:
    """Whether torch would take the kernel that reads memory nobody wrote: the weight gradient of a bf16 convolution
    over exactly two frames on a CPU with AVX-512 (measured with torch 2.13.0: up to 58 of 60 had a NaN; 1 or 4 frames,
    and fp32: none). I3D has such maps in Mixed_4 at 8 frames and in Mixed_5 at 16.
    """
    is_bf16 = x_NCTHW.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    return is_bf16 and x_NCTHW.shape[2] == 2 and kernel[0] > 1


class SameMaxPool3d(nn.Module):
    """Max pool with SAME padding. Inputs are after ReLU, so padding by minus infinity is padding by zero.

    Lopsided padding is always (0, 1) here, and that is what `ceil_mode` does: the last window is cut.
    """

    def __init__(self, kernel: Triple, stride: Triple) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        pads = _paddings(x_NCTHW, self.kernel, self.stride)
        assert all(after - before in (0, 1) and (before == after or before == 0) for before, after in pads)
        return nn.functional.max_pool3d(
            x_NCTHW, self.kernel, self.stride, tuple(before for before, _ in pads), ceil_mode=True
        )


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

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        for layer in self.children():  # in the order of their creation, which is the network's
            x_NCTHW = layer(x_NCTHW)
        return x_NCTHW.mean(dim=(2, 3, 4))
