"""Inputs for the fused heads, and the comparison of the Triton operator with the reference in fp64.

Needs torch, triton and mmsada_kernels alone: the interpreter's tests and those of a GPU share it.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from mmsada_kernels import reference
from mmsada_kernels.reference import Linear, Mlp
from mmsada_kernels.triton import heads


@dataclass(frozen=True)
class Case:
    """Sizes and kinds of inputs; `masks` says which clips have a weight in the terms."""

    clips: int = 5
    width: int = 40
    hidden: int = 12
    classes: int = 16
    num_classes: int = 8
    streams: int = 2
    reversal: float = 0.3
    masks: Literal["some", "all", "none"] = "some"
    gaps: bool = False
    features: torch.dtype = torch.float32
    autocast: bool = False

    @property
    def bf16(self) -> bool:
        """Whether products are of bf16."""
        return self.autocast or self.features == torch.bfloat16


CASES = {
    "as in a step": Case(),
    "one clip": Case(clips=1),
    "more clips than a block": Case(clips=33, width=16),
    "several shares of the features, the last in part": Case(clips=3, width=180),
    "features in fours": Case(width=4, hidden=3, classes=2, num_classes=2),
    "as many classes and hidden units as there may be": Case(clips=2, classes=64, num_classes=50, hidden=128),
    "one stream": Case(streams=1),
    "three streams": Case(streams=3, clips=3),
    "every clip counts": Case(masks="all"),
    "no clip counts": Case(masks="none"),
    "no reversal": Case(reversal=0.0),
    "tensors with gaps": Case(gaps=True),
    "bf16 features": Case(features=torch.bfloat16),
    "bf16 autocast": Case(autocast=True),
}


@dataclass(frozen=True)
class Inputs:
    """Arguments of `heads.adaptation_heads`, and an upstream gradient of its losses."""

    features: list[Tensor]
    dropout: list[Tensor]
    classifier: list[Tensor]
    discriminator: list[Tensor]
    correspondence: list[Tensor]
    targets: list[Tensor]
    weights: list[Tensor]
    reversal: Tensor
    num_classes: int
    by_losses_T: Tensor

    @property
    def leaves(self) -> list[Tensor]:
        return [*self.features, *self.classifier, *self.discriminator, *self.correspondence]

    @property
    def arguments(self) -> tuple[Any, ...]:
        parameters = (self.classifier, self.discriminator, self.correspondence)
        return (
            self.features, self.dropout, *parameters, *self.targets, *self.weights, self.reversal, self.num_classes,
        )  # fmt: skip


def make_inputs(case: Case, *, device: str = "cpu", seed: int = 0) -> Inputs:
    """Random inputs; weights of clips are fp64, as the plan's are."""
    rng = torch.Generator().manual_seed(seed)
    n, d, h, k, s = case.clips, case.width, case.hidden, case.classes, case.streams

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64) * scale

    def leaf(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        x = x.to(device, dtype)
        if case.gaps:
            wide = x.new_zeros(*x.shape, 2)
            wide[..., 1] = x
            x = wide[..., 1]
        return x.requires_grad_()

    def mlp(inputs: int) -> list[Tensor]:
        scale = inputs**-0.5
        return [leaf(normal(h, inputs, scale=scale)), *(leaf(normal(*shape)) for shape in ((h,), (2, h), (2,)))]

    def weights() -> Tensor:
        share = torch.rand(n, generator=rng, dtype=torch.float64) / n
        counts = torch.rand(n, generator=rng) > 0.5
        return {"some": share * counts, "all": share, "none": share * 0}[case.masks].to(device)

    def whole(most: int) -> Tensor:
        return torch.randint(most, (n,), generator=rng).to(device)

    return Inputs(
        features=[leaf(normal(n, d), case.features) for _ in range(s)],
        dropout=[2.0 * (torch.rand(n, d, generator=rng) > 0.5).to(device) for _ in range(s)],
        classifier=[x for _ in range(s) for x in (leaf(normal(k, d, scale=d**-0.5)), leaf(normal(k)))],
        discriminator=[x for _ in range(s) for x in mlp(d)],
        correspondence=mlp(s * d),
        targets=[whole(case.num_classes), whole(2), whole(2).bool()],
        weights=[weights() for _ in range(3)],
        reversal=torch.tensor(case.reversal, device=device),
        num_classes=case.num_classes,
        by_losses_T=normal(2 + s).to(device),
    )


Results = dict[str, Tensor]


def _results(inputs: Inputs, losses_T: Tensor, accuracies_T: Tensor, logits_NK: Tensor) -> Results:
    grads = torch.autograd.grad((losses_T * inputs.by_losses_T).sum(), inputs.leaves)
    values = {"losses": losses_T, "accuracies": accuracies_T, "logits": logits_NK}
    return {name: x.detach() for name, x in values.items()} | {
        f"gradient {i} {tuple(x.shape)}": x for i, x in enumerate(grads)
    }


def fused(case: Case, inputs: Inputs, run: Callable[..., Any] = heads.adaptation_heads) -> Results:
    """Values and gradients of the Triton operator, or of a compiled form of it."""
    device = inputs.reversal.device.type
    with torch.autocast(device, torch.bfloat16) if case.autocast else nullcontext():
        losses_T, accuracies_T, logits_NK = run(*inputs.arguments)
    return _results(inputs, losses_T, accuracies_T, logits_NK)


def defined(inputs: Inputs, *, rounded: bool) -> Results:
    """Values and gradients of the reference in fp64 on the CPU; where `rounded`, of operands of the first layers that
    were rounded to bf16 as the kernels do.
    """

    def exact(x: Tensor, first_layer: bool) -> Tensor:
        x = x.detach().cpu()
        return (x.bfloat16() if rounded and first_layer else x).double().requires_grad_()

    def each(tensors: Sequence[Tensor], every: int) -> list[Tensor]:
        return [exact(x, i % every == 0) for i, x in enumerate(tensors)]

    at = replace(
        inputs,
        features=each(inputs.features, 1),
        classifier=each(inputs.classifier, 2),
        discriminator=each(inputs.discriminator, 4),
        correspondence=each(inputs.correspondence, 4),
        by_losses_T=inputs.by_losses_T.cpu(),
    )
    label_N, domain_N, corresponds_N = (x.cpu() for x in inputs.targets)
    weight_ce_N, weight_corr_N, weight_domain_N = (x.cpu() for x in inputs.weights)
    streams = range(len(at.features))
    found = reference.adaptation_heads(
        at.features,
        [x.cpu().double() for x in inputs.dropout],
        classifier_S=[Linear(*at.classifier[2 * s : 2 * s + 2]) for s in streams],
        discriminator_S=[Mlp(*at.discriminator[4 * s : 4 * s + 4]) for s in streams],
        correspondence_head=Mlp(*at.correspondence),
        label_N=label_N,
        domain_N=domain_N,
        corresponds_N=corresponds_N,
        weight_ce_N=weight_ce_N,
        weight_corr_N=weight_corr_N,
        weight_domain_N=weight_domain_N,
        reversal=inputs.reversal.cpu(),
        num_classes=inputs.num_classes,
    )
    terms = [found.classified.scored, found.corresponds, *found.domain_S]
    accuracies = [term.accuracy for term in terms if term.accuracy is not None]
    losses_T = torch.stack([term.loss for term in terms])
    return _results(at, losses_T, torch.stack(accuracies), found.classified.logits_NK)


def departures(found: Results, wanted: Results) -> dict[str, float]:
    """Per result the largest difference over the largest value wanted (over 1 where that is 0); NaN counts as one."""
    assert found.keys() == wanted.keys()

    def departure(a: Tensor, b: Tensor) -> float:
        assert a.shape == b.shape
        largest = b.abs().max().item() or 1.0
        return (a.detach().cpu().double() - b).abs().max().item() / largest

    return {name: departure(found[name], wanted[name]) for name in wanted}


def allowed(case: Case, name: str) -> float:
    """fp32: sums of up to 1024 products round off by some 1e-6. bf16: values are taken of operands rounded as the
    kernels do, so they are as close; a gradient has slopes rounded once (2^-8), and stored as bf16 again (2^-8, in the
    interpreter, which cuts bits off, 2^-7).
    """
    if not case.bf16 or not name.startswith("gradient"):
        return 2e-5
    return 2.0**-7 if case.autocast else 2.0**-8 + 2.0**-7


def check(case: Case, inputs: Inputs, found: Results) -> None:
    """Raise AssertionError naming every result that departs from the reference."""
    seen = departures(found, defined(inputs, rounded=case.bf16))
    wrong = {name: f"{value:.1e}" for name, value in seen.items() if not value <= allowed(case, name)}
    assert not wrong, f"departs from the reference: {wrong}"
