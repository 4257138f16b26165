"""One I3D per stream, no weights shared (spec 1.1)."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mmsada_hpc.model.batch_norm import GroupContext
from mmsada_hpc.model.i3d import I3d

STREAM_CHANNELS = {"rgb": 3, "flow": 2}


def ndhwc(clips_NTHWC: Tensor) -> Tensor:
    """`(N, T, H, W, C)` seen as `(N, C, T, H, W)`: `channels_last_3d` without a copy (law 4)."""
    return clips_NTHWC.permute(0, 4, 1, 2, 3)


class TwoStream(nn.Module):
    """Features of every stream; the streams see the same clips in the same batch-norm groups."""

    def __init__(self, *, width: float, group_size: int, test_statistics: Literal["mixture", "target"]) -> None:
        super().__init__()
        self.context = GroupContext(group_size=group_size, test=test_statistics)
        self.streams = nn.ModuleDict(
            {name: I3d(channels, self.context, width=width) for name, channels in STREAM_CHANNELS.items()}
        )
        self.feature_size: int = next(iter(self.streams.values())).feature_size  # type: ignore[assignment]

    def forward(self, clips_NTHWC: Mapping[str, Tensor], domains: Sequence[int] = ()) -> dict[str, Tensor]:
        """Args:
            clips_NTHWC: per stream `(N, T, H, W, C)` in [-1, 1).
            domains: in training, one domain per batch-norm group; empty records no statistics.

        Returns:
            Per stream `(N, feature_size)`.
        """
        if not domains:
            return self._features(clips_NTHWC)
        with self.context.recorded(domains):
            return self._features(clips_NTHWC)

    def _features(self, clips_NTHWC: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: stream(ndhwc(clips_NTHWC[name])) for name, stream in self.streams.items()}


def use_ndhwc_weights(model: nn.Module) -> None:
    """Convolution weights to `channels_last_3d`. After `deepspeed.initialize`, never before it (measured: before, it
    crashes).
    """
    model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
