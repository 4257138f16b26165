"""The fused heads on a GPU: `reference.adaptation_heads` as one operator of three launches forward and two backward.

Not run on a GPU yet: run in Triton's interpreter and compiled for sm_80 and sm_90.

Products take bf16 operands under bf16 autocast (or for bf16 features) and fp32 ones otherwise, where
`torch.backends.cuda.matmul.allow_tf32` decides whether those may round to tf32, as for PyTorch's own. Everything else,
sums, second layers and softmax, is fp32: this is where it departs from the reference, whose logits are bf16 under
autocast. Shapes alone decide what is launched, so it can be captured in a CUDA graph; gradients of gradients are not
there. Names of shapes: see `heads_kernels.py`.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import triton
from torch import Tensor

from mmsada_kernels.triton import heads_kernels as kernels

INTERPRETED = not isinstance(kernels.project, triton.JITFunction)
"""Whether TRITON_INTERPRET was set when triton was imported: tensors are then of the CPU."""

MOST_STREAMS, MOST_CLASSES, MOST_HIDDEN = 4, 64, 128
BLOCK_N = 32
"""Clips that a program of `project` and `spread` takes at once."""
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def adaptation_heads(
    features_SND: Sequence[Tensor],
    dropout_SND: Sequence[Tensor],
    classifier: Sequence[Tensor],
    discriminator: Sequence[Tensor],
    correspondence: Sequence[Tensor],
    label_N: Tensor,
    domain_N: Tensor,
    corresponds_N: Tensor,
    weight_ce_N: Tensor,
    weight_corr_N: Tensor,
    weight_domain_N: Tensor,
    reversal: Tensor,
    num_classes: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, accuracies and fused logits of all heads; differentiable through the losses alone, as in every form.

    Args:
        features_SND: per stream `(N, D)`, un-dropped, one dtype; a tensor with gaps costs a copy, here and below.
        dropout_SND: per stream factors 0 or 1 / (1 - p).
        classifier: weight `(K, D)` and bias `(K,)` of each stream, one after the other.
        discriminator: weight1 `(H, D)`, bias1, weight2 `(2, H)` and bias2 of each stream, one after the other.
        correspondence: the same four tensors of the one head, its weight1 `(H, S * D)`.
        label_N: classes; one outside `num_classes` makes the loss NaN. So does a domain that is not 0 or 1.
        weight_ce_N: weights of the clips in each term, of any floating type.
        reversal: lambda as a tensor of one element on the device.

    Returns:
        losses_T fp32 `[ce, corr, domain of each stream]`, accuracies_T of the same order, logits_NK fp32.

    Raises:
        ValueError: what these kernels do not take; `why_not` says it beforehand.
    """
    problem = why_not(features_SND, classifier, discriminator, correspondence, num_classes)
    if problem is None and reversal.numel() != 1:
        problem = f"reversal must be one number, got shape {tuple(reversal.shape)}"
    if problem is not None:
        raise ValueError(f"fused heads in Triton: {problem}")
    outputs = torch.ops.mmsada.adaptation_heads_triton(
        list(features_SND), list(dropout_SND), list(classifier), list(discriminator), list(correspondence),
        label_N, domain_N, corresponds_N, weight_ce_N, weight_corr_N, weight_domain_N,
        reversal, num_classes, _products(features_SND[0]),
    )  # fmt: skip
    return outputs[0], outputs[1], outputs[2]


def why_not(
    features_SND: Sequence[Tensor],
    classifier: Sequence[Tensor],
    discriminator: Sequence[Tensor],
    correspondence: Sequence[Tensor],
    num_classes: int,
) -> str | None:
    """Why these kernels cannot take the tensors, or None where they can."""
    streams, (clips, width), first = len(features_SND), features_SND[0].shape, features_SND[0]
    hidden, classes = discriminator[0].shape[0], classifier[0].shape[0]
    pair = [(hidden, width), (hidden,), (2, hidden), (2,)]
    joint = [(hidden, streams * width), *pair[1:]]
    for what, tensors, shapes in (
        ("features", features_SND, [(clips, width)] * streams),
        ("classifier", classifier, [(classes, width), (classes,)] * streams),
        ("discriminator", discriminator, pair * streams),
        ("correspondence", correspondence, joint),
    ):
        if [tuple(x.shape) for x in tensors] != shapes:
            return f"{what} must have the shapes {shapes}, got {[tuple(x.shape) for x in tensors]}"
    limits = {
        f"{streams} streams, at most {MOST_STREAMS}": streams <= MOST_STREAMS,
        f"{classes} classes, at most {MOST_CLASSES}": classes <= MOST_CLASSES,
        f"{hidden} hidden units, at most {MOST_HIDDEN}": hidden <= MOST_HIDDEN,
        f"the first {num_classes} of {classes} classes": 1 <= num_classes <= classes,
        "no clips": clips > 0,
        f"features of {first.dtype}": first.dtype in _FLOATS,
        "features of several dtypes": all(x.dtype == first.dtype for x in features_SND),
        f"features on {first.device.type}": first.device.type == ("cpu" if INTERPRETED else "cuda"),
    }
    return next((problem for problem, holds in limits.items() if not holds), None)


def _products(features_ND: Tensor) -> str:
    """bf16 or fp32: read while autocast is in force, so outside the operator (a compiled graph runs without it)."""
    device = features_ND.device.type
    cast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
    return "bf16" if cast or features_ND.dtype == torch.bfloat16 else "fp32"


def tf32_allowed() -> bool:
    """PyTorch's own switch."""
    return bool(torch.backends.cuda.matmul.allow_tf32)


def _precision(products: str) -> str:
    """What `tl.dot` is told."""
    return "bf16" if products == "bf16" else "tf32" if tf32_allowed() else "ieee"


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """The one place a kernel is started from, on the device of its tensors, which need not be the current one."""
    with torch.cuda.device_of(args[0][0] if isinstance(args[0], tuple) else args[0]):
        kernel[grid](*args, **options)


def shares_of(clips: int, width: int, streams: int) -> tuple[int, int]:
    """How many programs share the features of a stream in `project`, and features of each: at least 64, and about 128
    programs in all, a GPU's worth of multiprocessors.
    """
    blocks = triton.cdiv(clips, BLOCK_N) * streams
    span = max(64, triton.next_power_of_2(triton.cdiv(width * blocks, 128)))
    return triton.cdiv(width, span), span


def constants(
    kernel: str, products: str, *, clips: int, width: int, hidden: int, classes: int, streams: int
) -> dict[str, Any]:
    """Constants and launch options of a kernel; shapes and precision alone decide. Blocks and warps are those that
    spilled no register for sm_80 and sm_90 (tests/kernels/test_triton_heads.py).
    """
    block_h, block_k = max(16, triton.next_power_of_2(hidden)), max(16, triton.next_power_of_2(classes))
    shares, span = shares_of(clips, width, streams)
    heads = {"BLOCK_H": block_h, "BLOCK_K": block_k}
    wide = {"D": width, "BLOCK_N": BLOCK_N, **heads, "num_warps": 8}
    wide |= {"PRECISION": _precision(products), "INTERPRETED": INTERPRETED}
    stages = 2 if products == "bf16" else 1
    # Exact fp32 products take many registers: fewer clips at once. No bound on them, under which the assembler spills.
    tight = {"BLOCK_N": 16} if wide["PRECISION"] == "ieee" else {}
    found: Mapping[str, dict[str, Any]] = {
        "project": {**wide, "SHARES": shares, "SPAN": span, "BLOCK_D": 32, "num_stages": stages},
        "score": {"SHARES": shares, "BLOCK_C": 16, **heads, "num_warps": 4},
        "spread": {**wide, "BLOCK_D": 16, "num_stages": 2, **tight},
        "gather": {"BLOCK_N": 64, "BLOCK": 32, "num_warps": 4},
    }
    return {"H": hidden, "K": classes, "S": streams, "enable_fp_fusion": True} | found[kernel]


def _solid(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(x.contiguous() for x in tensors)


def _sizes(features: Sequence[Tensor], classifier: Sequence[Tensor], discriminator: Sequence[Tensor]) -> dict[str, int]:
    clips, width = features[0].shape
    hidden, classes = discriminator[0].shape[0], classifier[0].shape[0]
    return {"clips": clips, "width": width, "hidden": hidden, "classes": classes, "streams": len(features)}


def _outputs(features: Sequence[Tensor], sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
    """losses_T, accuracies_T, logits_NK; then for the backward slope_NK, hidden_PNH, slope_PNH, slope2_PN."""
    clips, heads = sizes["clips"], 1 + sizes["streams"]
    shapes = [(1 + heads,)] * 2 + [(clips, sizes["classes"])] * 2 + [(heads, clips, sizes["hidden"])] * 2
    return tuple(features[0].new_empty(shape, dtype=torch.float32) for shape in [*shapes, (heads, clips)])


@torch.library.custom_op("mmsada::adaptation_heads_triton", mutates_args=())
def _forward(
    features: list[Tensor],
    dropout: list[Tensor],
    classifier: list[Tensor],
    discriminator: list[Tensor],
    correspondence: list[Tensor],
    label: Tensor,
    domain: Tensor,
    corresponds: Tensor,
    weight_ce: Tensor,
    weight_corr: Tensor,
    weight_domain: Tensor,
    reversal: Tensor,
    num_classes: int,
    products: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    sizes = _sizes(features, classifier, discriminator)
    clips, heads = sizes["clips"], 1 + sizes["streams"]
    found = _outputs(features, sizes)
    losses, accuracies, logits, slope, hidden, slope_hidden, slope2 = found
    at_project, at_score = constants("project", products, **sizes), constants("score", products, **sizes)
    rows = sizes["streams"] * at_project["SHARES"]
    share_CNW = losses.new_empty(rows, clips, sizes["classes"] + 2 * sizes["hidden"])
    scored_2TN = losses.new_empty(2, 1 + heads, clips)
    pairs = [_solid(correspondence), *(_solid(discriminator[i : i + 4]) for i in range(0, len(discriminator), 4))]
    first_PHD, bias1_PH, weight2_P2H, bias2_P2 = zip(*pairs, strict=True)
    launch(
        kernels.project, (rows, triton.cdiv(clips, at_project["BLOCK_N"])),
        _solid(features), _solid(dropout), _solid(classifier[::2]), first_PHD[1:], first_PHD[0], share_CNW, clips,
        **at_project,
    )  # fmt: skip
    launch(
        kernels.score, (clips, 1 + heads),
        share_CNW, _solid(classifier[1::2]), bias1_PH, weight2_P2H, bias2_P2,
        *_solid([label, domain, corresponds, weight_ce, weight_corr, weight_domain]),
        logits, slope, hidden, slope_hidden, slope2, scored_2TN, clips, num_classes, **at_score,
    )  # fmt: skip
    launch(
        kernels.total,
        (1 + heads,),
        scored_2TN,
        losses,
        accuracies,
        clips,
        T=1 + heads,
        BLOCK_N=128,
        num_warps=1,
        enable_fp_fusion=True,
    )
    return losses, accuracies, logits, slope, hidden, slope_hidden, slope2


@torch.library.custom_op("mmsada::adaptation_heads_triton_backward", mutates_args=())
def _backward(
    grad_losses: Tensor,
    features: list[Tensor],
    dropout: list[Tensor],
    classifier: list[Tensor],
    discriminator: list[Tensor],
    correspondence: list[Tensor],
    states: list[Tensor],
    reversal: Tensor,
    products: str,
) -> list[Tensor]:
    """Gradients of features, classifier, discriminator and correspondence, in this order, one after the other."""
    sizes = _sizes(features, classifier, discriminator)
    clips, streams = sizes["clips"], sizes["streams"]
    slope, hidden, slope_hidden, slope2 = states
    found = _like([*features, *classifier, *discriminator, *correspondence])
    by_features, by_classifier = tuple(found[:streams]), found[streams : 3 * streams]
    by_discriminator, by_correspondence = found[3 * streams : 7 * streams], found[7 * streams :]
    grad_losses = grad_losses.contiguous()
    at_spread, at_gather = constants("spread", products, **sizes), constants("gather", products, **sizes)
    launch(
        kernels.spread, (triton.cdiv(sizes["width"], at_spread["BLOCK_D"]), streams),
        grad_losses, reversal, _solid(features), _solid(dropout), _solid(classifier[::2]), _solid(discriminator[::4]),
        correspondence[0].contiguous(), slope, slope_hidden,
        by_features, tuple(by_classifier[::2]), tuple(by_discriminator[::4]), by_correspondence[0], clips,
        **at_spread,
    )  # fmt: skip
    launch(
        kernels.gather, (2 + streams, triton.cdiv(max(sizes["hidden"], sizes["classes"]), at_gather["BLOCK"])),
        grad_losses, slope, hidden, slope_hidden, slope2, tuple(by_classifier[1::2]),
        *((by_correspondence[i], *by_discriminator[i::4]) for i in (1, 2, 3)), clips, **at_gather,
    )  # fmt: skip
    return found


def _like(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in tensors]


@_forward.register_fake
def _(features: list[Tensor], dropout: Any, classifier: list[Tensor], discriminator: list[Tensor], *_: Any) -> Any:
    return _outputs(features, _sizes(features, classifier, discriminator))


@_backward.register_fake
def _(
    grad_losses: Any, features: Any, dropout: Any, classifier: Any, discriminator: Any,
    correspondence: Any, *_: Any,
) -> list[Tensor]:  # fmt: skip
    return _like([*features, *classifier, *discriminator, *correspondence])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    features, dropout, classifier, discriminator, correspondence, *_, reversal, _, products = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*features, *dropout, *classifier, *discriminator, *correspondence, *output[3:], reversal)
    ctx.streams, ctx.products = len(features), products


def _differentiate(ctx: Any, grad_losses: Tensor | None, *_: Any) -> Any:
    s = ctx.streams
    kept, reversal = ctx.saved_tensors[:-1], ctx.saved_tensors[-1]
    cuts = [0, s, 2 * s, 4 * s, 8 * s, 8 * s + 4, 8 * s + 8]
    features, dropout, classifier, discriminator, correspondence, states = (list(kept[a:b]) for a, b in pairwise(cuts))
    if grad_losses is None:
        grad_losses = states[0].new_zeros(2 + s)
    found = torch.ops.mmsada.adaptation_heads_triton_backward(
        grad_losses, features, dropout, classifier, discriminator, correspondence, states,
        reversal, ctx.products,
    )  # fmt: skip
    return found[:s], [None] * s, found[s : 3 * s], found[3 * s : 7 * s], found[7 * s :], *[None] * 9


_forward.register_autograd(_differentiate, setup_context=_keep)
