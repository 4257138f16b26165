"""What a GPU is told for training: every switch of `train` that is for GPUs alone is set here. Not run on a GPU yet."""

import torch

from mmsada_hpc.cluster.host import set_gpu
from mmsada_hpc.config_train import TrainConfig
from mmsada_hpc.errors import UserError
from mmsada_hpc.model.streams import MultiStream


def check_switches(train: TrainConfig, device: torch.device, world_size: int) -> None:
    """UserError where a switch asks for what only a GPU has, or a single rank. TF32 and cuDNN leave a CPU as it is."""
    if device.type == "cuda":
        # DDP and DeepSpeed send a bucket of gradients when the current stream has it, and do not ask the side streams.
        if train.side_by_side and world_size > 1:
            raise UserError(f"train.side_by_side=true is for one rank; with {world_size} ranks use false")
        return
    if train.accelerate != "none":
        raise UserError(f"train.accelerate={train.accelerate} is for a GPU; on a CPU use none")
    if train.side_by_side:
        raise UserError("train.side_by_side=true is for a GPU; on a CPU use false")


def use_switches(network: MultiStream, train: TrainConfig, device: torch.device) -> None:
    """Set this process and a network that lies on its device."""
    if device.type != "cuda":
        return
    set_gpu(device, tf32=train.tf32, cudnn_benchmark=train.cudnn_benchmark)
    network.on_gpu(
        graphs=train.accelerate == "graphs",
        compiled=train.accelerate == "compile",
        side_by_side=train.side_by_side,
    )
