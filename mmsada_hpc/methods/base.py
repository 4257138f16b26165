"""What a method is: heads, loss terms with their factors, which clips enter each, and a schedule. One file per method;
importing this package registers them.
"""

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmsada_hpc.config import Config, MethodConfig, ModelConfig
from mmsada_hpc.config_train import TrainConfig
from mmsada_hpc.data.batch import Batch
from mmsada_hpc.data.layout import BatchLayout, plan_layout
from mmsada_hpc.errors import UserError
from mmsada_hpc.methods.heads import classifier_head, draw_anew, linear_of
from mmsada_hpc.schedule import stage_schedule
from mmsada_kernels import Classified, Scored, classify

Features = Mapping[str, Tensor]
Side = Literal["source", "target"]
ClipWeights = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Moment:
    """Where training is, as a schedule sees it."""

    stage: int
    progress: float
    """Updates of the stage done, as a share (0 ... 1)."""
    scale: float
    """`loss_scale` of the stage (released: 1, then 0.2)."""

    @property
    def adapts(self) -> float:
        """1 in stage 2, 0 in stage 1, which aligns nothing (spec 1.7)."""
        return float(self.stage == 2)

    @property
    def ramp(self) -> float:
        """0 in stage 1; 2 / (1 + exp(-10 p)) - 1 over stage 2 (spec 2.2)."""
        return self.adapts * (2 / (1 + math.exp(-10 * self.progress)) - 1)


@dataclass(frozen=True)
class Factors:
    """What each loss term of one update is multiplied by, and what the gradient reversal multiplies by."""

    terms: Mapping[str, float]
    reversal: float = 0.0
    _on: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The factors of the terms in their order, `(T,)`, and the reversal, a scalar; float64. One copy serves all
        micro-batches of the update, none of which makes the host wait for a GPU. Each update has tensors of its own,
        whose place in memory a captured graph would not follow: heads and losses stay outside the graphs.
        """
        if device not in self._on:
            values = torch.tensor([*self.terms.values(), self.reversal], dtype=torch.float64)
            values = values.pin_memory() if device.type == "cuda" else values  # else the copy would wait for the GPU
            self._on[device] = values.to(device, non_blocking=True)
        return self._on[device][:-1], self._on[device][-1]


@dataclass(frozen=True)
class Losses:
    """The weighted total to differentiate, and this micro-batch's share of each logged figure."""

    total: Tensor
    figures: Mapping[str, Tensor]
    """Unscaled losses `loss_*` and accuracies (0 ... 1), as shares that add up over ranks and micro-batches."""


@dataclass(frozen=True)
class HeadSizes:
    """What heads are built for."""

    features: Mapping[str, int]
    """Width of each stream's features, in the order of the streams."""
    num_classes: int


class Method(nn.Module, ABC):
    """A training method: a module that holds its heads."""

    name: ClassVar[str]
    trains_on: ClassVar[tuple[Side, ...]] = ("source", "target")
    """Whose training clips make up a batch, in equal parts; the first side is the labelled one."""
    negatives: ClassVar[bool] = False
    """Half of each domain's batch are non-corresponding pairs."""
    fresh_in_stage2: ClassVar[tuple[str, ...]] = ()
    """Heads that start anew with stage 2."""

    def __init__(self, sizes: HeadSizes, *, model: ModelConfig, method: MethodConfig) -> None:
        super().__init__()
        self.sizes, self.streams, self.settings = sizes, tuple(sizes.features), method
        self.num_logits = model.logits_per_class * sizes.num_classes
        self.classifier = self.per_stream(lambda width: classifier_head(width, self.num_logits))
        self.add_heads()

    def add_heads(self) -> None:  # a method may have none beside the classifier
        """Build the method's heads beside the classifier."""

    @staticmethod
    @abstractmethod
    def weigh(domain_N: NDArray[np.int64], corresponds_N: NDArray[np.bool_]) -> ClipWeights:
        """Which clips of the global batch enter each loss term: 1 / (clips in that term), or 0 (law 3).

        Args:
            domain_N: index into `trains_on`.
            corresponds_N: False for a pair whose streams come from two segments.
        """

    @abstractmethod
    def factors(self, at: Moment) -> Factors:
        """The schedule: a factor for every term of `terms`."""

    @abstractmethod
    def terms(self, features: Features, batch: Batch, reversal: Tensor) -> Mapping[str, Scored]:
        """Every loss term of the method, unscaled, at every step: a factor may be 0, nothing is left out (law 3).

        Args:
            features: per stream `(N, D)`, un-dropped.
            batch: its `weights` hold what `weigh` gave for these clips.
            reversal: `Factors.reversal` as a scalar tensor.
        """

    def probe(self, features: Features, domain: int) -> dict[str, float]:
        """Accuracies of the other heads on a test set of one domain, in percent; `{}` where there are none."""
        return {}

    @classmethod
    def label(cls, config: Config) -> str:
        """How tables name the method, with the settings that make another row of it."""
        return cls.name

    @classmethod
    def check(cls, config: Config, layout: BatchLayout) -> None:
        """UserError where the method cannot be computed with this batch."""

    @classmethod
    def crosses_ranks(cls, config: Config, layout: BatchLayout) -> bool:
        """Whether a rank's gradients hang on other ranks' clips."""
        return False

    def losses(self, features: Features, batch: Batch, factors: Factors) -> Losses:
        """The total of one micro-batch and its figures."""
        any_ND = next(iter(features.values()))
        factor_T, reversal = factors.on(any_ND.device)
        found = self.terms(features, batch, reversal.to(any_ND.dtype))
        assert found.keys() == factors.terms.keys(), (set(found), set(factors.terms))
        loss_T = torch.stack([found[name].loss for name in factors.terms])
        total = (factor_T.to(loss_T.dtype) * loss_T).sum()
        figures = {f"loss_{name}": term.loss for name, term in found.items()}
        accuracies = {accuracy_of(n): term.accuracy for n, term in found.items() if term.accuracy is not None}
        return Losses(total, figures | accuracies)

    def logits(self, features: Features) -> dict[str, Tensor]:
        """`(N, K)` logits at test: `fused` (the sum, as released) and each stream's own."""
        parts = {s: self.classifier[s](features[s]) for s in self.streams}
        return {"fused": torch.stack(list(parts.values())).sum(dim=0), **parts}

    def start_stage2(self, seed: int) -> None:
        """Draw the heads that start anew."""
        for name in self.fresh_in_stage2:
            draw_anew(getattr(self, name), seed=seed)

    # What methods are built from

    def per_stream(self, head: Callable[[int], nn.Module]) -> nn.ModuleDict:
        """One head for each stream's width of features."""
        return nn.ModuleDict({stream: head(width) for stream, width in self.sizes.features.items()})

    def listed(self, by_stream: Mapping[str, Tensor]) -> list[Tensor]:
        """Tensors in the order of the streams, as the kernels take them."""
        return [by_stream[stream] for stream in self.streams]

    def classify(self, features: Features, batch: Batch) -> Classified:
        """Cross-entropy of the summed logits over the clips of the term `ce`."""
        return classify(
            self.listed(features),
            self.listed(batch.dropout_SND),
            [linear_of(self.classifier[s]) for s in self.streams],
            label_N=batch.label_N,
            weight_N=batch.weights["ce"],
            num_classes=self.sizes.num_classes,
        )


def accuracy_of(term: str) -> str:
    """The name of a term's accuracy among the figures: `top1`, `corr_acc`, `domain_acc_rgb`."""
    kind, _, stream = term.partition("_")
    return "top1" if term == "ce" else "_".join([kind, "acc", *filter(None, [stream])])


def share(chosen_N: NDArray[np.bool_]) -> NDArray[np.float64]:
    """1 / (clips chosen) for each of them, 0 for the others."""
    return chosen_N / chosen_N.sum()


def moment(train: TrainConfig, stage: int, step: int) -> Moment:
    """Update `step` (from 0) of a stage."""
    at = stage_schedule(train, stage)
    return Moment(stage, at.progress(step), at.loss_scale)


_METHODS: dict[str, type[Method]] = {}


def register(name: str) -> Callable[[type[Method]], type[Method]]:
    """Make a `Method` known as `method.name=<name>`."""

    def add(method: type[Method]) -> type[Method]:
        method.name = name
        _METHODS[name] = method
        return method

    return add


def method_names() -> Sequence[str]:
    """Every registered name."""
    return sorted(_METHODS)


def find_method(name: str) -> type[Method]:
    """The registered method, or an error that names the nearest one."""
    if name not in _METHODS:
        near = difflib.get_close_matches(name, _METHODS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(method_names())}"
        raise UserError(f"method.name={name}: no such method; {hint}")
    return _METHODS[name]


def batch_layout(config: Config, world_size: int) -> BatchLayout:
    """How a config's global batch is shared out over ranks.

    Raises:
        UserError: it does not split into whole batch-norm groups (lists the sizes that fit), or the method cannot be
        computed with it.
    """
    method = find_method(config.method.name)
    layout = plan_layout(
        global_batch=config.train.global_batch,
        micro_batch=config.train.micro_batch,
        world_size=world_size,
        group_size=config.model.batch_norm.group_size,
        num_domains=len(method.trains_on),
        layout=config.train.layout,
    )
    method.check(config, layout)
    return layout
