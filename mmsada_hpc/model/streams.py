"""One network per stream, no weights shared (spec 1.1): two I3Ds as published, and whatever a config adds."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mmsada_hpc.model.backbones import VIDEO_STREAMS, StreamSpec, build_backbone
from mmsada_hpc.model.batch_norm import GroupContext
from mmsada_hpc.model.graphs import Graphs
from mmsada_hpc.model.i3d import I3d


def channels_first(clips_NLC: Tensor) -> Tensor:
    """Channels last seen as channels first, without a copy: `(N, T, H, W, C)` is then `channels_last_3d` (law 4)."""
    return clips_NLC.movedim(-1, 1)


class MultiStream(nn.Module):
    """Features of every stream; the streams see the same clips in the same batch-norm groups."""

    def __init__(
        self,
        streams: Mapping[str, StreamSpec] = VIDEO_STREAMS,
        *,
        width: float,
        group_size: int,
        test_statistics: Literal["mixture", "target"],
    ) -> None:
        super().__init__()
        self.context = GroupContext(group_size=group_size, test=test_statistics)
        self.streams = nn.ModuleDict(
            {name: build_backbone(spec, self.context, width=width) for name, spec in streams.items()}
        )
        self._graphs: Graphs | None = None
        self._sides: dict[str, torch.cuda.Stream] = {}

    def on_gpu(self, *, graphs: bool = False, compiled: bool = False, side_by_side: bool = False) -> None:
        """How a GPU is to run the networks; each is off unless asked for. Not run on a GPU yet.

        Args:
            graphs: training's forward and backward are captured as CUDA graphs, for one shape after another.
            compiled: `torch.compile` of every network, in place of the forward and backward written by hand.
            side_by_side: every network after the first in a CUDA stream of its own; so are its gradients made, which
                no engine that averages them over ranks waits for.
        """
        self._graphs = Graphs(self) if graphs else None
        names = list(self.streams)[1:] if side_by_side else []
        self._sides = {name: torch.cuda.Stream() for name in names}
        if compiled:
            for network in self.streams.values():
                if isinstance(network, I3d):
                    network.fuses = False
                network.compile(dynamic=False)

    @property
    def feature_sizes(self) -> dict[str, int]:
        """Width of each stream's features, in the order of the streams."""
        return {name: int(stream.feature_size) for name, stream in self.streams.items()}  # type: ignore[arg-type]

    def forward(self, clips_NTHWC: Mapping[str, Tensor], domains: Sequence[int] = ()) -> dict[str, Tensor]:
        """Args:
            clips_NTHWC: per stream `(N, T, H, W, C)` in [-1, 1), or `(N, L, C)`.
            domains: in training, one domain per batch-norm group; empty records no statistics.

        Returns:
            Per stream `(N, D)`.
        """
        if not domains:
            return self._features(clips_NTHWC)
        if self._graphs is not None and not self._graphs.is_capturing:
            return self._graphs(clips_NTHWC, domains)
        with self.context.recorded(domains):
            return self._features(clips_NTHWC)

    def _features(self, clips_NTHWC: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self._sides:
            return self._features_side_by_side(clips_NTHWC)
        return {name: stream(channels_first(clips_NTHWC[name])) for name, stream in self.streams.items()}

    def _features_side_by_side(self, clips_NTHWC: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The backward runs in the streams of the forward, which autograd sees to."""
        here = torch.cuda.current_stream()
        begun = here.record_event()
        features = {}
        for name, network in self.streams.items():
            side = self._sides.get(name, here)
            if side is not here:
                side.wait_event(begun)
                # Torch does not give its memory on before `side` is done with it. Of memory that is not torch's, such
                # as DALI's, this is no promise: there it does nothing.
                clips_NTHWC[name].record_stream(side)
            with torch.cuda.stream(side):
                features[name] = network(channels_first(clips_NTHWC[name]))
        for name, side in self._sides.items():
            here.wait_stream(side)
            features[name].record_stream(here)
        return features


def use_ndhwc_weights(model: nn.Module) -> None:
    """Convolution weights to `channels_last_3d`. After `deepspeed.initialize`, never before it (measured: before, it
    crashes).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv3d):  # a backbone may hold 2-D convolutions, which have no such format
            module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
