"""Heads with random weights and a random micro-batch, and how far a form of them is from the fp64 definition."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from mmsada_kernels import reference
from mmsada_kernels.reference import AdaptationLosses, Linear, Mlp

Heads = Callable[..., AdaptationLosses]
Mask = Literal["all", "none", "some"]
# What the terms are multiplied by in the total, so that a gradient that forgets its term's factor is seen.
FACTORS = (0.7, -1.3, 0.4, 2.1, 0.9)


@dataclass(frozen=True)
class Sizes:
    """One case; `widths` are the features of each stream."""

    clips: int = 6
    widths: tuple[int, ...] = (40, 24)
    hidden: int = 10
    classes: int = 3
    spare: int = 2
    """Logits beyond the classes."""
    classified: Mask = "some"
    """Which clips have a label, and which of them are of the target."""
    corresponds: Mask = "some"
    reversal: float = 0.3
    seed: int = 0
    away: bool = False
    """Keep every hidden unit away from its ReLU's corner, so that a rounding cannot switch one."""


@dataclass(frozen=True)
class Case:
    """Arguments of `adaptation_heads`."""

    features: list[Tensor]
    dropout: list[Tensor]
    given: dict[str, Any]

    @property
    def leaves(self) -> list[Tensor]:
        """Features, then all parameters."""
        heads = [*self.given["classifier_S"], *self.given["discriminator_S"], self.given["correspondence_head"]]
        return [*self.features, *(x for head in heads for x in head)]

    def to(self, dtype: torch.dtype, *, features: torch.dtype | None = None) -> "Case":
        """The same numbers as far as `dtype` holds them; features may have a type of their own."""

        def leaf(x: Tensor, to: torch.dtype = dtype) -> Tensor:
            return x.detach().to(to).requires_grad_()

        given = {
            **self.given,
            "classifier_S": [Linear(*map(leaf, head)) for head in self.given["classifier_S"]],
            "discriminator_S": [Mlp(*map(leaf, head)) for head in self.given["discriminator_S"]],
            "correspondence_head": Mlp(*map(leaf, self.given["correspondence_head"])),
            "reversal": self.given["reversal"].to(dtype),
        }
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return Case([leaf(x, features or dtype) for x in self.features], [x.to(wide) for x in self.dropout], given)

    def replace(self, **given: Any) -> "Case":
        return replace(self, given={**self.given, **given})


def make_case(sizes: Sizes) -> Case:
    """fp64 leaves whose values bf16 holds exactly, so that all precisions start from one case."""
    rng = torch.Generator().manual_seed(sizes.seed)
    clips, hidden = sizes.clips, sizes.hidden

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        values = (scale * torch.randn(*shape, generator=rng, dtype=torch.float64)).bfloat16().double()
        return values.requires_grad_()

    def bias() -> Tensor:
        if not sizes.away:
            return normal(hidden, scale=0.1)
        return (torch.randint(0, 2, (hidden,), generator=rng) * 16.0 - 8.0).double().requires_grad_()

    def mlp(inputs: int) -> Mlp:
        return Mlp(normal(hidden, inputs, scale=inputs**-0.5), bias(), normal(2, hidden, scale=0.3), normal(2))

    def choose(mask: Mask) -> Tensor:
        some = torch.rand(clips, generator=rng) < 0.5
        return {"all": torch.ones_like(some), "none": torch.zeros_like(some), "some": some}[mask]

    def share(chosen: Tensor) -> Tensor:
        return chosen.double() / max(1, int(chosen.sum()))

    classified = choose(sizes.classified)
    given = {
        "classifier_S": [
            Linear(normal(sizes.classes + sizes.spare, d, scale=d**-0.5), normal(sizes.classes + sizes.spare))
            for d in sizes.widths
        ],
        "discriminator_S": [mlp(d) for d in sizes.widths],
        "correspondence_head": mlp(sum(sizes.widths)),
        "label_N": torch.randint(0, sizes.classes, (clips,), generator=rng),
        "domain_N": 1 - classified.long(),
        "corresponds_N": choose(sizes.corresponds),
        "weight_ce_N": share(classified),
        "weight_corr_N": share(torch.ones(clips)),
        "weight_domain_N": share(torch.ones(clips)),
        "reversal": torch.tensor(sizes.reversal, dtype=torch.float64),
        "num_classes": sizes.classes,
    }
    dropout = [2.0 * (torch.rand(clips, d, generator=rng, dtype=torch.float64) < 0.5) for d in sizes.widths]
    return Case([normal(clips, d) for d in sizes.widths], dropout, given)


@dataclass(frozen=True)
class Found:
    """What a form of the heads gives for a case."""

    losses: Tensor
    accuracies: Tensor
    logits: Tensor
    gradients: list[Tensor]
    """Of `FACTORS` times the losses, by `Case.leaves`."""


def compute(heads: Heads, case: Case, *, autocast: bool = False) -> Found:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = heads(case.features, case.dropout, **case.given)
    terms = [found.classified.scored, found.corresponds, *found.domain_S]
    total = torch.stack([factor * term.loss for factor, term in zip(FACTORS, terms, strict=False)]).sum()
    right = [term.accuracy for term in terms if term.accuracy is not None]
    return Found(
        torch.stack([term.loss for term in terms]).detach(),
        torch.stack(right),
        found.classified.logits_NK.detach(),
        list(torch.autograd.grad(total, case.leaves, allow_unused=True, materialize_grads=True)),
    )


def definition(case: Case) -> Found:
    """The reference in fp64."""
    return compute(reference.adaptation_heads, case)


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Relative to the whole tensor, or to 0.01 where that is less: what is left where terms of a sum cancel is rounded
    as the terms were, which are about 1.
    """
    return float((ours.double() - theirs).norm() / theirs.norm().clamp(min=0.01))


def distances(ours: Found, theirs: Found) -> list[float]:
    """Of losses, logits, and every gradient."""
    pairs: Sequence[tuple[Tensor, Tensor]] = [
        (ours.losses, theirs.losses),
        (ours.logits, theirs.logits),
        *zip(ours.gradients, theirs.gradients, strict=True),
    ]
    return [distance(a, b) for a, b in pairs]
