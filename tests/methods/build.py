"""A method with random heads and a random batch of features, small and in fp64."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmsada_hpc.config import load_config
from mmsada_hpc.data.batch import Batch
from mmsada_hpc.methods import HeadSizes, Method, find_method
from tests.methods import statement

STREAMS = ("rgb", "flow")


@dataclass(frozen=True)
class Shape:
    """`per_domain` clips of each domain (half of them do not correspond where the method has negatives), features of
    `width` in each stream.
    """

    per_domain: int
    width: int
    num_classes: int
    seed: int
    block: int = 2


@dataclass(frozen=True)
class Case:
    method: Method
    features: dict[str, Tensor]
    batch: Batch
    given: statement.Given

    @property
    def params(self) -> statement.Params:
        return {name: p.detach().numpy().copy() for name, p in self.method.named_parameters()}

    @property
    def arrays(self) -> statement.Params:
        return {s: x.detach().numpy().copy() for s, x in self.features.items()}


def make_case(name: str, shape: Shape, **settings: str) -> Case:
    """A case of a method, `settings` being keys of the config's section `method`."""
    per_domain, width, num_classes = shape.per_domain, shape.width, shape.num_classes
    rng = np.random.default_rng(shape.seed)
    words = [
        f"method.name={name}",
        f"method.mmd_block={shape.block}",
        *(f"method.{k}={v}" for k, v in settings.items()),
    ]
    config = load_config(None, words)
    kind = find_method(name)
    sizes = HeadSizes(dict.fromkeys(STREAMS, width), num_classes)
    method = kind(sizes, model=config.model, method=config.method).double()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.copy_(torch.from_numpy(rng.normal(scale=0.4, size=parameter.shape)))
    n = per_domain * len(kind.trains_on)
    domain = np.repeat(np.arange(len(kind.trains_on)), per_domain)
    corresponds = np.tile(np.arange(per_domain) % 2 == 0, len(kind.trains_on)) if kind.negatives else np.ones(n, bool)
    label = rng.integers(0, num_classes, n)
    dropout = {s: 2.0 * rng.integers(0, 2, (n, width)) for s in STREAMS}
    features = {s: rng.normal(size=(n, width)) for s in STREAMS}
    batch = Batch(
        clips_NTHWC={},
        label_N=torch.from_numpy(label),
        domain_N=torch.from_numpy(domain),
        corresponds_N=torch.from_numpy(corresponds),
        place_N=torch.from_numpy(np.tile(np.arange(per_domain), len(kind.trains_on))),
        weights={k: torch.from_numpy(np.asarray(w)) for k, w in kind.weigh(domain, corresponds).items()},
        dropout_SND={s: torch.from_numpy(x) for s, x in dropout.items()},
        group_domains=(),
    )
    tensors = {s: torch.from_numpy(x).requires_grad_() for s, x in features.items()}
    shares = method.logits(tensors)["fused"].detach().numpy()[:, :num_classes]
    given = statement.Given(
        label,
        domain,
        corresponds,
        dropout,
        num_classes,
        shape.block,
        {s: _gammas(x, domain, shape.block, settings.get("mmd_kernels", "fixed")) for s, x in features.items()},
        np.exp(statement.log_softmax(shares)),
    )
    return Case(method, tensors, batch, given)


def _gammas(x: statement.Floats, domain: np.ndarray, block: int, kernels: str) -> statement.Floats:
    source, target = x[domain == 0], x[domain == 1]
    rows = []
    for first in range(0, len(source), block):
        if kernels == "fixed":
            rows.append(9.7 * 2.0 ** (-8 + np.sqrt(2) * np.arange(12)))
            continue
        both = np.concatenate([source[first : first + block], target[first : first + block]])
        apart = statement.squared_distances(both, both)[~np.eye(len(both), dtype=bool)]
        # torch's median is the lower of the two middle values
        rows.append(np.sort(apart)[(len(apart) - 1) // 2] * 2.0 ** np.arange(-2, 3))
    return np.array(rows)
