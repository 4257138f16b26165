"""Every loss term in NumPy and fp64, written from the spec's formulas (1.2-1.4, 2.1, 6.1-6.4); knows nothing of ours
but the names of the heads.

Nothing here turns a complex number into a real one, so that `slope` can take exact derivatives by complex steps.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]  # fp64, or complex where a derivative is taken
Terms = dict[str, Any]
Params = dict[str, Floats]
# The twelve kernels as spec 6.2 prints them: 9.7 * 2^a, a from -8 in steps of sqrt 2 below 8.
GAMMAS = np.array([0.0379, 0.101, 0.269, 0.717, 1.91, 5.09, 13.6, 36.2, 96.4, 257, 685, 1826])


@dataclass(frozen=True)
class Given:
    """What a batch says beside its features. Source clips come before target clips."""

    label: NDArray[np.int64]
    domain: NDArray[np.int64]
    corresponds: NDArray[np.bool_]
    dropout: Mapping[str, Floats]
    num_classes: int
    mmd_block: int
    gammas: Mapping[str, Floats]
    """Per stream `(blocks, kernels)`; constants, whatever the features do."""
    shares: Floats
    """`(N, classes)` that condition CDAN's discriminators; constants too."""


def log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.real.max(axis=1, keepdims=True)
    out: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return out


def cross_entropy(logits: Floats, label: NDArray[np.int64]) -> Floats:
    picked: Floats = -log_softmax(logits)[np.arange(len(label)), label]
    return picked


def mlp(params: Params, head: str, x: Floats) -> Floats:
    hidden = x @ params[f"{head}.0.weight"].T + params[f"{head}.0.bias"]
    hidden = np.where(hidden.real > 0, hidden, 0)
    out: Floats = hidden @ params[f"{head}.2.weight"].T + params[f"{head}.2.bias"]
    return out


def summed_logits(params: Params, features: Params, given: Given, *, heads: str = "classifier") -> Floats:
    """The sum over streams, dropped features in (spec 1.2)."""
    parts = [
        (x * given.dropout[s]) @ params[f"{heads}.{s}.weight"].T + params[f"{heads}.{s}.bias"]
        for s, x in features.items()
    ]
    return np.sum(parts, axis=0)


def classification(params: Params, features: Params, given: Given, *, heads: str = "classifier") -> Any:
    """Mean over the source clips whose streams correspond, over the first `num_classes` outputs."""
    logits = summed_logits(params, features, given, heads=heads)[:, : given.num_classes]
    chosen = (given.domain == 0) & given.corresponds
    return cross_entropy(logits[chosen], given.label[chosen]).mean()


def correspondence(params: Params, features: Params, given: Given) -> Any:
    logits = mlp(params, "correspondence", np.concatenate(list(features.values()), axis=1))
    return cross_entropy(logits, given.corresponds.astype(np.int64)).mean()


def domain(params: Params, x: Floats, given: Given, stream: str) -> Any:
    return cross_entropy(mlp(params, f"discriminator.{stream}", x), given.domain).mean()


def discrepancy(params: Params, features: Params, given: Given) -> Any:
    """Mean over target clips and classes (spec 6.3)."""
    main, other = (
        np.exp(log_softmax(summed_logits(params, features, given, heads=h)[:, : given.num_classes]))
        for h in ("classifier", "auxiliary")
    )
    apart = main - other
    return np.where(apart.real > 0, apart, -apart)[given.domain == 1].mean()


def entropy(params: Params, features: Params, given: Given) -> Any:
    log_p = log_softmax(summed_logits(params, features, given)[:, : given.num_classes])
    return -(np.exp(log_p) * log_p).sum(axis=1)[given.domain == 1].mean()


def squared_distances(x: Floats, y: Floats) -> Floats:
    out: Floats = ((x[:, None] - y[None]) ** 2).sum(axis=-1)
    return out


def mmd(x: Floats, given: Given, stream: str) -> Any:
    """Mean over blocks of mean K_ss + mean K_tt - 2 mean K_st, K the sum of RBF kernels (spec 6.2)."""
    source, target = x[given.domain == 0], x[given.domain == 1]
    parts = []
    for number, first in enumerate(range(0, len(source), given.mmd_block)):
        s, t = (side[first : first + given.mmd_block] for side in (source, target))

        def k(a: Floats, b: Floats, gammas: Floats = given.gammas[stream][number]) -> Any:
            return np.exp(-squared_distances(a, b)[..., None] / gammas).sum(axis=-1).mean()

        parts.append(k(s, s) + k(t, t) - 2 * k(s, t))
    return np.mean(parts)


def terms(name: str, params: Params, features: Params, given: Given) -> Terms:
    """Every term of a method, unscaled."""
    found = {"ce": classification(params, features, given)}
    if name in ("self_supervised", "mmsada"):
        found["corr"] = correspondence(params, features, given)
    if name in ("adversarial", "mmsada"):
        found |= {f"domain_{s}": domain(params, x, given, s) for s, x in features.items()}
    if name == "cdan":
        outer = {s: np.einsum("nd,nc->ndc", x, given.shares).reshape(len(x), -1) for s, x in features.items()}
        found |= {f"domain_{s}": domain(params, x, given, s) for s, x in outer.items()}
    if name == "mmd":
        found |= {f"mmd_{s}": mmd(x, given, s) for s, x in features.items()}
    if name == "mcd":
        found["auxiliary"] = classification(params, features, given, heads="auxiliary")
        found["discrepancy"] = discrepancy(params, features, given)
    if name == "target_entropy":
        found["entropy"] = entropy(params, features, given)
    return found


def is_reversed(term: str) -> bool:
    """Whether the features' share of a term's gradient is multiplied by -l, the heads' own not."""
    return term.startswith("domain_") or term == "discrepancy"


def slope(function: Callable[[Floats], Any], x: Floats) -> Floats:
    """The gradient by complex steps: exact, and no kink of a ReLU is ever crossed."""
    out = np.zeros_like(x)
    for place in np.ndindex(*x.shape):
        moved = x.astype(np.complex128)
        moved[place] += 1e-30j
        out[place] = function(moved).imag / 1e-30
    return out
