"""The heads in plain PyTorch: the definition every faster form is measured against (spec 1.2-1.4, 2.1).

N clips, D features per stream, K logits, H hidden units. Every loss is `sum(weight_N * loss_N)`: the weights carry 1 /
(global count) or 0, so that
partial sums of ranks and micro-batches add up to the loss of the global batch.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Mlp(NamedTuple):
    """Two fully connected layers with a ReLU between them, PyTorch layout."""

    weight1_HD: Tensor
    bias1_H: Tensor
    weight2_2H: Tensor
    bias2_2: Tensor


class Linear(NamedTuple):
    weight_KD: Tensor
    bias_K: Tensor


class Scored(NamedTuple):
    """A loss term and the weighted share of clips it gets right (0 ... 1 once added up), where it has a right."""

    loss: Tensor
    accuracy: Tensor | None = None


class Classified(NamedTuple):
    """The classification term and the logits it was taken from."""

    scored: Scored
    logits_NK: Tensor


class _ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (factor,) = ctx.saved_tensors
        return -factor.to(grad.dtype) * grad, None


def reverse_gradient(x: Tensor, factor: Tensor) -> Tensor:
    """Identity; the gradient is multiplied by -factor (a scalar tensor, so that a captured graph can follow the
    ramp; or any shape that broadcasts, such as `(N, 1)`).
    """
    return _ReverseGradient.apply(x, factor)


def _two_layers(x_ND: Tensor, mlp: Mlp) -> Tensor:
    return F.linear(F.relu(F.linear(x_ND, mlp.weight1_HD, mlp.bias1_H)), mlp.weight2_2H, mlp.bias2_2)


def wide(x: Tensor) -> Tensor:
    """At least fp32: what losses are taken in under autocast."""
    return x if x.dtype == torch.float64 else x.float()


def _weighted(logits_NK: Tensor, label_N: Tensor, weight_N: Tensor) -> Scored:
    wide_NK = wide(logits_NK)
    weight_N = weight_N.to(wide_NK.dtype)
    loss = (weight_N * F.cross_entropy(wide_NK, label_N, reduction="none")).sum()
    hit_N = (wide_NK.detach().argmax(dim=1) == label_N).to(weight_N.dtype)
    return Scored(loss, (weight_N * hit_N).sum())


def classify(
    features_SND: Sequence[Tensor],
    dropout_SND: Sequence[Tensor],
    heads_S: Sequence[Linear],
    *,
    label_N: Tensor,
    weight_N: Tensor,
    num_classes: int,
) -> Classified:
    """Cross-entropy of the summed logits of all streams over the first `num_classes` of K (spec 1.2).

    Args:
        features_SND: per stream `(N, D)`, un-dropped.
        dropout_SND: per stream factors 0 or 1 / (1 - p).
        heads_S: per stream the 1x1x1 convolution as a linear layer.
        label_N: class indices below `num_classes`.
        weight_N: 1 / (clips of the global batch that are classified), or 0.
    """
    parts = [
        F.linear(x * drop, head.weight_KD, head.bias_K)
        for x, drop, head in zip(features_SND, dropout_SND, heads_S, strict=True)
    ]
    logits_NK = torch.stack(parts).sum(dim=0)
    scored = _weighted(logits_NK[:, :num_classes], label_N, weight_N)
    return Classified(scored, logits_NK)


def discriminate(features_ND: Tensor, head: Mlp, *, domain_N: Tensor, weight_N: Tensor, reversal: Tensor) -> Scored:
    """Domain cross-entropy (0 source, 1 target) behind the gradient reversal (spec 1.3)."""
    return _weighted(_two_layers(reverse_gradient(features_ND, reversal), head), domain_N, weight_N)


def correspondence(features_SND: Sequence[Tensor], head: Mlp, *, corresponds_N: Tensor, weight_N: Tensor) -> Scored:
    """Do the streams show one segment? Cross-entropy on their joined features, index 1 = they do (spec 1.4)."""
    return _weighted(_two_layers(torch.cat(list(features_SND), dim=1), head), corresponds_N.long(), weight_N)


class AdaptationLosses(NamedTuple):
    """All heads of a step."""

    classified: Classified
    corresponds: Scored
    domain_S: tuple[Scored, ...]


def adaptation_heads(
    features_SND: Sequence[Tensor],
    dropout_SND: Sequence[Tensor],
    *,
    classifier_S: Sequence[Linear],
    discriminator_S: Sequence[Mlp],
    correspondence_head: Mlp,
    label_N: Tensor,
    domain_N: Tensor,
    corresponds_N: Tensor,
    weight_ce_N: Tensor,
    weight_corr_N: Tensor,
    weight_domain_N: Tensor,
    reversal: Tensor,
    num_classes: int,
) -> AdaptationLosses:
    """Every head of MM-SADA on one micro-batch; see the single functions for the arguments."""
    return AdaptationLosses(
        classify(
            features_SND, dropout_SND, classifier_S, label_N=label_N, weight_N=weight_ce_N, num_classes=num_classes
        ),
        correspondence(features_SND, correspondence_head, corresponds_N=corresponds_N, weight_N=weight_corr_N),
        tuple(
            discriminate(x, head, domain_N=domain_N, weight_N=weight_domain_N, reversal=reversal)
            for x, head in zip(features_SND, discriminator_S, strict=True)
        ),
    )
