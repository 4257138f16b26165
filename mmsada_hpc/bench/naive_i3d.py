"""The plain alternative: I3D as it is usually written. Every convolution and pool pads by a copy, memory is NCDHW,
weights and products are fp32, branches are concatenated, and autograd keeps what it likes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmsada_hpc.model.batch_norm import EPS
from mmsada_hpc.model.i3d import I3d, Mixed, SameMaxPool3d, Unit3d


def _pad(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    pads: list[int] = []
    for size, k, s in zip(x.shape[2:], kernel, stride, strict=True):
        total = max(k - s if size % s == 0 else k - size % s, 0)
        pads = [total // 2, total - total // 2, *pads]
    return F.pad(x, pads)


class _Unit(nn.Module):
    def __init__(self, like: Unit3d) -> None:
        super().__init__()
        conv = like.conv3d
        kernel, stride = conv.kernel_size[0], conv.stride[0]
        self.conv3d = nn.Conv3d(conv.in_channels, conv.out_channels, kernel, stride=stride, bias=False)
        self.bn = nn.BatchNorm3d(conv.out_channels, eps=EPS)
        with torch.no_grad():
            self.conv3d.weight.copy_(like.conv3d.weight)
            self.bn.bias.copy_(like.bn.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = _pad(x, self.conv3d.kernel_size, self.conv3d.stride)
        return F.relu(self.bn(self.conv3d(x)))


class _Pool(nn.Module):
    def __init__(self, like: SameMaxPool3d) -> None:
        super().__init__()
        self.kernel, self.stride = like.plan

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(_pad(x, self.kernel, self.stride), self.kernel, self.stride)


class _Mixed(nn.Module):
    def __init__(self, like: Mixed) -> None:
        super().__init__()
        self.b0, self.b1a, self.b1b = _Unit(like.b0), _Unit(like.b1a), _Unit(like.b1b)
        self.b2a, self.b2b, self.b3b = _Unit(like.b2a), _Unit(like.b2b), _Unit(like.b3b)
        self.pool = _Pool(like.pool)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(
            [self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.pool(x))],
            dim=1,
        )


class NaiveI3d(nn.Module):
    """`(N, C, T, H, W)` to `(N, feature_size)`, with the weights of an `I3d`; one batch-norm group."""

    def __init__(self, like: I3d) -> None:
        super().__init__()
        naive = {Unit3d: _Unit, SameMaxPool3d: _Pool, Mixed: _Mixed}
        self.layers = nn.Sequential(*(naive[type(layer)](layer) for layer in like.children()))
        self.feature_size = like.feature_size

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.layers(x.contiguous()).mean(dim=(2, 3, 4))
        return features
