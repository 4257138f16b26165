"""Every head of MM-SADA on one micro-batch, in the fastest form there is for the tensors at hand.

C++ on a CPU (fp32, or bf16 under autocast), Triton on a GPU, else `mmsada_kernels.reference`, which defines them all
and takes what they do not: a lambda for each clip, dropout that broadcasts. Fused forms take products of bf16 operands
under autocast and everything else in fp32. Whatever the form, differentiate the losses alone (not accuracies, not
logits), and once: a fused form gives no other gradient.
"""

import functools
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmsada_kernels import cpu, layers, reference
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
    usual = (
        reversal.numel() == 1
        and corresponds_N.dtype in (torch.bool, torch.int64)
        and all(drop.shape == x.shape for drop, x in zip(dropout_SND, features_SND, strict=True))
    )
    fused = (_on_cpu(*heads) or _on_gpu(*heads)) if usual else None
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
    """The Triton form, or None: where the layers have none either, or for what its kernels do not take, which is
    warned of once.
    """
    first = features_SND[0]
    if first.device.type != "cuda" or not layers.is_compiled(first.device, first.dtype):
        return None
    from mmsada_kernels.triton import heads

    problem = heads.why_not(features_SND, classifier, discriminator, correspondence, num_classes)
    if problem is not None:
        _warn(problem)
        return None
    return heads.adaptation_heads


@functools.cache
def _warn(problem: str) -> None:
    warnings.warn(f"the heads are computed in plain PyTorch, which is slower: {problem}", stacklevel=4)
