"""What a method is: heads, loss terms with their weights, which clips enter each, and a schedule. One file per method;
importing this package registers them.
"""

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmsada_hpc.config import Config, MethodConfig, ModelConfig, StageConfig, TrainConfig
from mmsada_hpc.data.batch import Batch
from mmsada_hpc.data.layout import BatchLayout, plan_layout
from mmsada_hpc.errors import UserError
from mmsada_kernels.reference import Linear, Mlp

Features = Mapping[str, Tensor]


@dataclass(frozen=True)
class LossScales:
    """Factors on the loss terms at one step; `reversal` is what the gradient reversal multiplies by."""

    ce: float
    corr: float
    domain: float
    reversal: float


@dataclass(frozen=True)
class Losses:
    """The weighted total to differentiate, and this micro-batch's share of each logged figure."""

    total: Tensor
    figures: Mapping[str, Tensor]
    """Unscaled losses `loss_*` and accuracies (0 ... 1), as shares that add up over ranks and micro-batches."""


class Method(nn.Module, ABC):
    """A training method: a module that holds its heads."""

    name: ClassVar[str]
    adapts: ClassVar[bool] = True
    """Half of each batch is unlabelled target."""
    negatives: ClassVar[bool] = True
    """Half of each domain's batch are non-corresponding pairs."""
    fresh_in_stage2: ClassVar[tuple[str, ...]] = ()
    """Heads that start anew with stage 2."""
    figures: ClassVar[tuple[str, ...]] = ("loss_ce", "top1")
    """Keys of `Losses.figures`, in order."""

    def __init__(
        self, *, streams: tuple[str, ...], feature_size: int, num_classes: int, model: ModelConfig, method: MethodConfig
    ) -> None:
        super().__init__()
        self.streams, self.feature_size, self.num_classes, self.settings = streams, feature_size, num_classes, method
        self.classifier = nn.ModuleDict(
            {s: classifier_head(feature_size, model.logits_per_class * num_classes) for s in streams}
        )

    @staticmethod
    @abstractmethod
    def weigh(domain_N: NDArray[np.int64], corresponds_N: NDArray[np.bool_]) -> Mapping[str, NDArray[np.float64]]:
        """Per loss term the weight of every clip of the global batch: 1 / (clips in that term), or 0."""

    @abstractmethod
    def losses(self, features: Features, batch: Batch, scales: LossScales) -> Losses:
        """Every head of the method, at every step (law 3)."""

    def scales(self, stage: int, step: int, train: TrainConfig) -> LossScales:
        """Loss factors of update `step` (from 0) of a stage. No adversarial share in stage 1; the ramp of spec 2.2 in
        stage 2.
        """
        settings = stage_of(train, stage)
        adversarial = stage == 2
        peak = settings.loss_scale * self.settings.lambda_d
        return LossScales(
            ce=settings.loss_scale,
            corr=settings.loss_scale * self.settings.lambda_c,
            domain=float(adversarial),
            reversal=peak * ramp(step / settings.steps) if adversarial else 0.0,
        )

    def logits(self, features: Features) -> dict[str, Tensor]:
        """`(N, K)` logits at test: `fused` (the sum, as released) and each stream's own."""
        parts = {s: self.classifier[s](features[s]) for s in self.streams}
        return {"fused": torch.stack(list(parts.values())).sum(dim=0), **parts}

    def start_stage2(self, seed: int) -> None:
        """Draw the heads that start anew."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for name in self.fresh_in_stage2:
                getattr(self, name).apply(_reset)


def ramp(progress: float) -> float:
    """2 / (1 + exp(-10 p)) - 1 (spec 2.2)."""
    return 2 / (1 + math.exp(-10 * progress)) - 1


def stage_of(train: TrainConfig, stage: int) -> StageConfig:
    return train.stage1 if stage == 1 else train.stage2


class TruncatedLinear(nn.Linear):
    """Linear layer drawn from a normal cut at two standard deviations, bias 0."""

    def __init__(self, inputs: int, outputs: int, *, std: float) -> None:
        self.std = std
        super().__init__(inputs, outputs)

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.weight, std=self.std, a=-2 * self.std, b=2 * self.std)
        nn.init.zeros_(self.bias)


def _reset(module: nn.Module) -> None:
    if isinstance(module, TruncatedLinear):
        module.reset_parameters()


def classifier_head(features: int, outputs: int) -> TruncatedLinear:
    """The 1x1x1 convolution on the pooled features, std 1 / sqrt(features) (spec 1.1, 1.2)."""
    return TruncatedLinear(features, outputs, std=features**-0.5)


def two_layer_head(features: int, hidden: int = 100) -> nn.Sequential:
    """features -> 100 -> ReLU -> 2, std 0.1 (spec 1.3, 1.4)."""
    return nn.Sequential(TruncatedLinear(features, hidden, std=0.1), nn.ReLU(), TruncatedLinear(hidden, 2, std=0.1))


def linear_of(module: nn.Module) -> Linear:
    """A head's parameters as the kernels take them."""
    assert isinstance(module, nn.Linear)
    return Linear(module.weight, module.bias)


def mlp_of(module: nn.Module) -> Mlp:
    """A two-layer head's parameters as the kernels take them."""
    assert isinstance(module, nn.Sequential)
    first, _, second = module
    return Mlp(*linear_of(first), *linear_of(second))


_METHODS: dict[str, type[Method]] = {}


def register(name: str) -> Callable[[type[Method]], type[Method]]:
    """Make a `Method` known as `method.name=<name>`."""

    def add(method: type[Method]) -> type[Method]:
        method.name = name
        _METHODS[name] = method
        return method

    return add


def find_method(name: str) -> type[Method]:
    """The registered method, or an error that names the nearest one."""
    if name not in _METHODS:
        near = difflib.get_close_matches(name, _METHODS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(_METHODS))}"
        raise UserError(f"method.name={name}: no such method; {hint}")
    return _METHODS[name]


def batch_layout(config: Config, world_size: int) -> BatchLayout:
    """How a config's global batch is shared out over ranks.

    Raises:
        UserError: it does not split into whole batch-norm groups; lists the sizes that fit.
    """
    return plan_layout(
        global_batch=config.train.global_batch,
        micro_batch=config.train.micro_batch,
        world_size=world_size,
        group_size=config.model.batch_norm.group_size,
        num_domains=2 if find_method(config.method.name).adapts else 1,
        layout=config.train.layout,
    )
