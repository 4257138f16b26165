"""The network and the heads of the method as the one module that an engine wraps."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmsada_hpc.config import Config
from mmsada_hpc.data.batch import Batch
from mmsada_hpc.methods import find_method
from mmsada_hpc.methods.base import Factors, HeadSizes
from mmsada_hpc.model.backbones import VIDEO_STREAMS, StreamSpec
from mmsada_hpc.model.i3d import I3d
from mmsada_hpc.model.pretrained import load_pretrained
from mmsada_hpc.model.streams import MultiStream


class TrainModule(nn.Module):
    """Losses in training, logits and features at test."""

    def __init__(self, config: Config, *, num_classes: int) -> None:
        super().__init__()
        settings = config.model
        added = {name: StreamSpec(s.backbone, s.channels) for name, s in config.data.streams.items()}
        self.network = MultiStream(
            {**VIDEO_STREAMS, **added},
            width=settings.width,
            group_size=settings.batch_norm.group_size,
            test_statistics=settings.batch_norm.test,
        )
        self.method = find_method(config.method.name)(
            HeadSizes(self.network.feature_sizes, num_classes), model=settings, method=config.method
        )

    def forward(
        self, batch: Batch, factors: Factors | None = None
    ) -> tuple[Tensor, Mapping[str, Tensor]] | tuple[dict[str, Tensor], dict[str, Tensor]]:
        """With `factors` `(total, figures)` of a training step; without, `(logits, features)` of the test mode.

        Plain tuples and dicts, because ZeRO 3 looks for the tensors in what a module returns and knows no others.
        """
        dtype = next(self.parameters()).dtype
        clips = {stream: x.to(dtype) for stream, x in batch.clips_NTHWC.items()}  # a copy for fp64 alone
        if factors is None:
            features = self.network(clips)
            return self.method.logits(features), features
        features = self.network(clips, batch.group_domains)
        losses = self.method.losses(features, batch, factors)
        return losses.total, losses.figures


def new_module(config: Config, *, num_classes: int) -> TrainModule:
    """Initial weights from the seed and the files of `model.pretrained` alone, equal on every rank and machine."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(part_seed(config.seed, "weights"))
        module = TrainModule(config, num_classes=num_classes)
    for stream, path in config.model.pretrained.files().items():
        network = module.network.streams[stream]
        assert isinstance(network, I3d)
        load_pretrained(network, path, stream=stream)
    return module


def part_seed(seed: int, part: str) -> int:
    """A seed for one use of the run's seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{part}".encode()).digest()[:7], "big")
