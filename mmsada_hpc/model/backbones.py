"""The networks a stream may have: from a clip of any shape to one feature vector."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from mmsada_hpc.model.batch_norm import GroupBatchNorm, GroupContext
from mmsada_hpc.model.i3d import I3d

Build = Callable[..., nn.Module]


@dataclass(frozen=True)
class StreamSpec:
    """One stream's network: its backbone by name, and the channels of its input."""

    backbone: str
    channels: int


VIDEO_STREAMS: Mapping[str, StreamSpec] = {"rgb": StreamSpec("i3d", 3), "flow": StreamSpec("i3d", 2)}


class Conv1d(nn.Module):
    """`(N, C, L)` to `(N, feature_size)`: four strided convolutions in time with batch norm, then the mean."""

    CHANNELS = (64, 128, 256, 512)

    def __init__(self, channels_in: int, context: GroupContext, *, width: float = 1.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for full in self.CHANNELS:
            channels = max(4, round(full * width / 4) * 4)
            layers += [
                nn.Conv1d(channels_in, channels, 5, stride=2, padding=2, bias=False),
                GroupBatchNorm(channels, context),
                nn.ReLU(inplace=True),
            ]
            channels_in = channels
        self.layers = nn.Sequential(*layers)
        self.feature_size = channels_in

    def forward(self, x_NCL: Tensor) -> Tensor:
        y_NCL: Tensor = self.layers(x_NCL)
        return y_NCL.mean(dim=2)


_BACKBONES: dict[str, Build] = {"i3d": I3d, "conv1d": Conv1d}


def register_backbone(name: str) -> Callable[[Build], Build]:
    """Make a backbone known by name: called with `(channels, context, width=...)`, it has a `feature_size` and takes
    `(N, C, ...)`.
    """

    def add(build: Build) -> Build:
        _BACKBONES[name] = build
        return build

    return add


def build_backbone(spec: StreamSpec, context: GroupContext, *, width: float) -> nn.Module:
    """The network of a stream.

    Raises:
        ValueError: no such backbone; names the nearest.
    """
    if spec.backbone not in _BACKBONES:
        near = difflib.get_close_matches(spec.backbone, _BACKBONES, n=1) or sorted(_BACKBONES)
        raise ValueError(f"backbone {spec.backbone}: no such backbone; did you mean {' or '.join(near)}?")
    return _BACKBONES[spec.backbone](spec.channels, context, width=width)
