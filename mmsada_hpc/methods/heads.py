"""The layers that methods put on the pooled features (spec 1.2-1.4), and their parameters as the kernels take them."""

import torch
from torch import nn

from mmsada_kernels.reference import Linear, Mlp


class TruncatedLinear(nn.Linear):
    """Linear layer drawn from a normal cut at two standard deviations, bias 0."""

    def __init__(self, inputs: int, outputs: int, *, std: float) -> None:
        self.std = std
        super().__init__(inputs, outputs)

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.weight, std=self.std, a=-2 * self.std, b=2 * self.std)
        nn.init.zeros_(self.bias)


def classifier_head(features: int, outputs: int) -> TruncatedLinear:
    """The 1x1x1 convolution on the pooled features, std 1 / sqrt(features) (spec 1.1, 1.2)."""
    return TruncatedLinear(features, outputs, std=features**-0.5)


def two_layer_head(features: int, hidden: int = 100) -> nn.Sequential:
    """features -> 100 -> ReLU -> 2, std 0.1 (spec 1.3, 1.4)."""
    return nn.Sequential(TruncatedLinear(features, hidden, std=0.1), nn.ReLU(), TruncatedLinear(hidden, 2, std=0.1))


def draw_anew(module: nn.Module, *, seed: int) -> None:
    """Draw the weights of a head from a seed of its own: on the CPU and in fp32, whatever it is trained in (law 1)."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        for layer in module.modules():
            if isinstance(layer, TruncatedLinear):
                fresh = TruncatedLinear(layer.in_features, layer.out_features, std=layer.std)
                layer.weight.copy_(fresh.weight)
                layer.bias.copy_(fresh.bias)


def linear_of(module: nn.Module) -> Linear:
    """A linear head's parameters as the kernels take them."""
    assert isinstance(module, nn.Linear)
    return Linear(module.weight, module.bias)


def mlp_of(module: nn.Module) -> Mlp:
    """A two-layer head's parameters as the kernels take them."""
    assert isinstance(module, nn.Sequential)
    first, _, second = module
    return Mlp(*linear_of(first), *linear_of(second))
