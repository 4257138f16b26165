"""Every head of MM-SADA on one micro-batch, in the fastest form there is for the tensors at hand.

C++ on a CPU (fp32, or bf16 under autocast), Triton on a GPU, else `mmsada_kernels.reference`, which defines them all.
Fused forms take products of bf16 operands under autocast and everything else in fp32; they are
differentiable through the losses alone (not accuracies, not logits) and once.
"""

import functools
import importlib.util
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmsada_kernels import cpu, reference
from mmsada_kernels.reference import AdaptationLosses, Classified, Linear, Mlp, Scored

_Fused = Callable[..., tuple[Tensor, Tensor, Tensor]]


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
    """As `reference.adaptation_heads`."""
    classifier = [x for head in classifier_S for x in head]
    discriminator = [x for head in discriminator_S for x in head]
    heads = (features_SND, classifier, discriminator, correspondence_head, num_classes)
    fused = _on_cpu(*heads) or _on_gpu(*heads)
    if fused is None:
        return reference.adaptation_heads(
            features_SND,
            dropout_SND,
            classifier_S=classifier_S,
            discriminator_S=discriminator_S,
            correspondence_head=correspondence_head,
            label_N=label_N,
            domain_N=domain_N,
            corresponds_N=corresponds_N,
            weight_ce_N=weight_ce_N,
            weight_corr_N=weight_corr_N,
            weight_domain_N=weight_domain_N,
            reversal=reversal,
            num_classes=num_classes,
        )
    losses_T, accuracies_T, logits_NK = fused(
        features_SND, dropout_SND, classifier, discriminator, correspondence_head,
        label_N, domain_N, corresponds_N, weight_ce_N, weight_corr_N, weight_domain_N, reversal, num_classes,
    )  # fmt: skip
    classified, corresponds, *domain_S = map(Scored, losses_T.unbind(), accuracies_T.unbind())
    return AdaptationLosses(Classified(classified, logits_NK), corresponds, tuple(domain_S))


def _on_cpu(
    features_SND: Sequence[Tensor],
    classifier: Sequence[Tensor],
    discriminator: Sequence[Tensor],
    correspondence: Sequence[Tensor],
    num_classes: int,
) -> _Fused | None:
    """The C++ form, or None: on other devices, in other precisions, or where it is not compiled."""
    first = features_SND[0]
    if first.device.type != "cpu":
        return None
    products = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else first.dtype
    takes = {torch.float32: (torch.float32,), torch.bfloat16: (torch.float32, torch.bfloat16)}.get(products, ())
    parameters = (*classifier, *discriminator, *correspondence)
    if (
        any(x.dtype not in takes or x.dtype != first.dtype for x in features_SND)
        or any(x.dtype != torch.float32 for x in parameters)
        or not cpu.is_loaded()
    ):
        return None
    return functools.partial(torch.ops.mmsada.adaptation_heads, product_dtype=products)


def _on_gpu(
    features_SND: Sequence[Tensor],
    classifier: Sequence[Tensor],
    discriminator: Sequence[Tensor],
    correspondence: Sequence[Tensor],
    num_classes: int,
) -> _Fused | None:
    """The Triton form, or None: on other devices, without triton, or for what its kernels do not take."""
    if features_SND[0].device.type != "cuda" or cpu.wants_reference() or not _has_triton():
        return None
    from mmsada_kernels.triton import heads

    if heads.why_not(features_SND, classifier, discriminator, correspondence, num_classes):
        return None
    return heads.adaptation_heads


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
