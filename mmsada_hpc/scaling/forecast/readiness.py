"""When the backward has each gradient, and what share of a step it is: by the convolutions' operations of the real
network, without running it. Both streams in the order of autograd: what was computed last comes first.
"""

from functools import cache

from mmsada_hpc.scaling.forecast.engines import Gradient


@cache
def gradients_of(*, width: float, frames: int, side: int) -> tuple[tuple[Gradient, ...], float]:
    """Gradients in the order in which they become ready, and the backward's share of forward and backward.

    Args:
        side: of a frame, pixels.
    """
    import torch

    from mmsada_hpc.bench.step_model import CHANNELS
    from mmsada_hpc.model.batch_norm import GroupContext
    from mmsada_hpc.model.convolution import SameConv3d
    from mmsada_hpc.model.i3d import I3d

    forward, layers = 0.0, list[tuple[int, float]]()

    def note(module: torch.nn.Module, args: tuple[torch.Tensor], out: torch.Tensor) -> None:
        nonlocal forward
        assert isinstance(module, SameConv3d)
        operations = float(out.numel() * module.weight[0].numel())
        forward += operations
        is_stem = module.in_channels in CHANNELS.values()
        layers.append((module.weight.numel() + module.out_channels, operations * (1 if is_stem else 2)))

    with torch.device("meta"):
        for channels in CHANNELS.values():
            network = I3d(channels, GroupContext(group_size=1, test="mixture"), width=width)
            network.fuses = False
            for module in network.modules():
                if isinstance(module, SameConv3d):
                    module.register_forward_hook(note)
            network(torch.empty(1, channels, frames, side, side))
    backward = sum(operations for _, operations in layers)
    done, found = 0.0, list[Gradient]()
    for elements, operations in reversed(layers):
        done += operations
        found.append(Gradient(elements, done / backward))
    return tuple(found), backward / (forward + backward)
