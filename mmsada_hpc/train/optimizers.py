"""The optimisers of `train.optimizer`, and what of their state a checkpoint keeps.

With w a tensor of weights, g its gradient, r the rate, d the decay and m the momentum, an update is

    sgd    u = m u + g + d w                          w -= r u           (Nesterov: w -= r (g + d w + m u))
    lars   u = m u + c |w| / (|g| + d |w|) (g + d w)  w -= r u           c = `trust_coefficient`; biases as SGD, d = 0
    lamb   a = b1 a + (1 - b1) g, v = b2 v + (1 - b2) g^2, s = a / (sqrt(v) + 1e-6) + d w, w -= r |w| / |s| s
           biases without the ratio and d = 0; no bias correction (version 3 of the paper), so begin with a warm-up
    adamw  as lamb with a / (1 - b1^t), v / (1 - b2^t), eps 1e-8, no ratio, and the decay apart: w -= r d w

A ratio is 1 where a norm is 0.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmsada_hpc.config_train import TrainConfig

SLOTS: Mapping[str, tuple[str, ...]] = {
    "sgd": ("momentum_buffer",),
    "lars": ("momentum_buffer",),
    "lamb": ("exp_avg", "exp_avg_sq"),
    "adamw": ("exp_avg", "exp_avg_sq", "step"),
}
"""Optimiser -> its tensors of one parameter. The first one goes by the parameter's name in a checkpoint, as momentum
always did, the others by NAME/SLOT.
"""
NAMES = {
    "sgd": "SGD",
    "lars": "LARS (You et al. 2017)",
    "lamb": "LAMB (You et al. 2019, version 3: without bias correction)",
    "adamw": "AdamW",
}


def make_optimizer(module: nn.Module, train: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser over all parameters of a module, at rate 0 until an update sets it.

    A layer is one tensor: the 1x1x1 convolutions that an inception block computes as one (`model/fused.py`) are
    parameters of their own, so each has a trust ratio of its own. Biases take no part in trust ratios and, SGD apart
    (which is as released), in weight decay.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    if train.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=0.0, momentum=train.momentum, weight_decay=train.weight_decay, nesterov=train.nesterov
        )
    layers = {"params": [p for p in parameters if p.ndim > 1], "weight_decay": train.weight_decay}
    biases = {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}
    if train.optimizer == "adamw":
        return torch.optim.AdamW([layers, biases], lr=0.0, betas=train.betas)
    from pytorch_optimizer import LARS, Lamb  # takes a second

    if train.optimizer == "lars":  # which leaves tensors of one dimension to plain SGD by itself
        found: torch.optim.Optimizer = LARS(
            [layers, biases],
            lr=0.0,
            momentum=train.momentum,
            nesterov=train.nesterov,
            trust_coefficient=train.trust_coefficient,
        )
        return found
    # Decay inside the update, whose norm the trust ratio is taken of, as in the paper; `adam`: ratio 1. `adam_debias`
    # switches off a division by 1 - beta1^t that the library's text denies: the trust ratio has scaled the update
    # already, so the first step would be ten rates long (and a resume would begin to count anew).
    lamb = Lamb([layers, {**biases, "adam": True}], lr=0.0, betas=train.betas, weight_decouple=False, adam_debias=True)
    lamb.clamp = math.inf  # else the norm of the weights counts as 10 at most
    found = lamb
    return found  # noqa: RET504  # which tells mypy what it is


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The learning rate of every parameter."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def state_of(
    optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter], train: TrainConfig
) -> dict[str, Tensor]:
    """What a checkpoint keeps of the parameters that have been updated."""
    return {
        _key(name, slot): optimizer.state[parameter][slot]
        for name, parameter in named.items()
        for slot in SLOTS[train.optimizer]
        if slot in optimizer.state.get(parameter, {})
    }


def load_state(
    optimizer: torch.optim.Optimizer,
    named: Mapping[str, nn.Parameter],
    train: TrainConfig,
    state: Mapping[str, Tensor],
) -> None:
    """Put back what `state_of` gave, on the parameters' devices and in their layout: the norm of LAMB's update is a sum
    in the order of memory, so another layout would be another last bit.
    """
    for name, parameter in named.items():
        for slot in SLOTS[train.optimizer]:
            value = state[_key(name, slot)]
            place = value if slot == "step" else parameter.detach()
            optimizer.state[parameter][slot] = torch.empty_like(place).copy_(value)


def keys(named: Mapping[str, nn.Parameter], train: TrainConfig) -> set[str]:
    """Of the state of a module whose parameters have all been updated."""
    return {_key(name, slot) for name in named for slot in SLOTS[train.optimizer]}


def _key(name: str, slot: str) -> str:
    return name if slot in ("momentum_buffer", "exp_avg") else f"{name}/{slot}"
