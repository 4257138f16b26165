"""What the model says of published scaling results, from public figures of their hardware alone.

One way only: nothing is fitted to a result. Gradients are hidden as torch's DDP hides them, then not at all; no rank is
slower than another. What a result loses beyond that is told as what it would take: a spread of the ranks' times, if
nothing else (a loader's limit, a full fabric) is the cause.
"""

from dataclasses import dataclass

from mmsada_hpc.scaling.forecast import texts
from mmsada_hpc.scaling.forecast.compute import Compute
from mmsada_hpc.scaling.forecast.engines import Engine, Gradient
from mmsada_hpc.scaling.forecast.forecast import Inputs, Plan, Traffic, clips_per_s
from mmsada_hpc.scaling.forecast.network import FREE, Link, Network, Team
from mmsada_hpc.scaling.forecast.stragglers import expected_maximum

_LAYERS = 50
"""Gradients come at an even pace through the backward, so many equal ones: of these networks none is published."""
# One way; what NCCL reaches of it: of an H100 as in configs/hardware/h100_ib.yaml, of an A100 about as much of its 300
# GB/s [unverified]. Latencies as in NCCL's tuning table.
_A100 = Link(3.4e-6, 1 / 230e9)
_H100 = Link(3.4e-6, 1 / 376e9)
_TOLERANCE = 0.02
"""Of efficiency, that counts as reproduced."""


@dataclass(frozen=True)
class Result:
    """A published efficiency, and what is public about how it came about."""

    name: str
    source: str
    efficiency: float
    first: tuple[int, int]
    """Nodes and ranks a node that it is relative to."""
    last: tuple[int, int]
    parameters: int
    step_s: float
    """Of one rank alone, with `batch` samples."""
    batch: int
    network: Network
    remark: str
    is_sharded: bool = False
    """Weights are gathered too, in the forward and in the backward (fully sharded, bf16; gradients fp32)."""


RESULTS = (
    Result(
        "nnU-Net 3D, AMP, batch 4",
        "DeepLearningExamples, A100: 9.52 -> 74.29 volumes/s",
        7.80 / 8,
        (1, 1),
        (1, 8),
        31_200_000,
        4 / 9.52,
        4,
        Network(FREE, _A100),
        "gradients are 1 ms of 420: what is lost is not the network's",
    ),
    Result(
        "nnU-Net 3D, AMP, batch 2",
        "DeepLearningExamples, A100: 7.64x",
        7.64 / 8,
        (1, 1),
        (1, 8),
        31_200_000,
        2 / 8.0,
        2,
        Network(FREE, _A100),
        "its rate on one GPU is not in our notes: 8 volumes/s assumed",
    ),
    Result(
        "ResNet-50, TF32",
        "DeepLearningExamples, A100: 938 images/s on one",
        7.72 / 8,
        (1, 1),
        (1, 8),
        25_600_000,
        256 / 938,
        256,
        Network(FREE, _A100),
        "7,240 images/s to be decoded on one host",
    ),
    Result(
        "ResNet-50, AMP",
        "DeepLearningExamples, A100: 2,470 -> 16,621 images/s",
        6.72 / 8,
        (1, 1),
        (1, 8),
        25_600_000,
        256 / 2470,
        256,
        Network(FREE, _A100),
        "the loader's limit: a host decodes 10,000 to 20,000 JPEG/s [unverified], and 8 GPUs would take 19,760",
    ),
    Result(
        "torchtitan, Llama 8B",
        "torchtitan/benchmarks, H100: 5,762 -> 5,605 tokens/s a GPU",
        5605 / 5762,
        (1, 8),
        (16, 8),
        8_030_000_000,
        2 * 8192 / 5762,
        2,
        Network(Link(14e-6, 1 / 340e9), _H100),
        "two sequences of 8,192 tokens a GPU assumed",
        is_sharded=True,
    ),
    Result(
        "ResNet-50, Goyal et al.",
        "arXiv 1706.02677, P100, 8 to 256 GPUs: about 90 %",
        0.90,
        (1, 8),
        (32, 8),
        25_600_000,
        0.18,
        32,
        Network(Link(30e-6, 1 / 6.25e9), Link(5.7e-6, 1 / 10e9)),
        "50 Gbit/s Ethernet a server, 0.18 s a step of 32 images and its PCIe [unverified]",
    ),
)


@dataclass(frozen=True)
class Comparison:
    """A result beside the model's."""

    result: Result
    hidden: float
    """Efficiency with gradients that travel during the backward."""
    bare: float
    """The same with all of it after the backward."""
    spread: float
    """Of the ranks' times, that would explain what `hidden` does not lose; 0 where it loses enough."""

    @property
    def verdict(self) -> str:
        low, high = sorted((self.hidden, self.bare))
        if low - _TOLERANCE <= self.result.efficiency <= high + _TOLERANCE:
            return "reproduced"
        return "too high" if low > self.result.efficiency else "too low"


def compare(result: Result) -> Comparison:
    """What the model says of it."""
    hidden, bare = _efficiency(result, hides=True), _efficiency(result, hides=False)
    waits = expected_maximum(_ranks(result.last)) - expected_maximum(_ranks(result.first))
    lost = hidden / result.efficiency - 1
    return Comparison(result, hidden, bare, max(0.0, lost / waits))


def table() -> str:
    """All of them as text."""
    rows = [_HEAD, *(_cells(one) for one in map(compare, RESULTS))]
    return "\n".join(
        [
            "published scaling beside the model, from public figures of the hardware alone; nothing is fitted",
            *texts.table(rows, last=1),
            "",
            "hidden: gradients travel during the backward; after: behind it. spread: standard deviation of the ranks'",
            "step times that would explain the rest, if nothing else does.",
            *(f"  {one.name}: {one.source}" for one in RESULTS),
        ]
    )


_HEAD = ("efficiency", "ranks", "published", "hidden", "after", "", "spread", "")


def _cells(one: Comparison) -> tuple[str, ...]:
    of = one.result
    shares = [f"{100 * share:.1f} %" for share in (of.efficiency, one.hidden, one.bare)]
    ranks = f"{_ranks(of.first)} to {_ranks(of.last)}"
    spread = f"{100 * one.spread:.1f} %" if one.spread else "-"
    return (of.name, ranks, *shares, one.verdict, spread, of.remark)


def _ranks(shape: tuple[int, int]) -> int:
    return shape[0] * shape[1]


def _efficiency(result: Result, *, hides: bool) -> float:
    def rate(shape: tuple[int, int]) -> float:
        nodes, per_node = shape
        gathered_s = _gathered_s(result, Team(nodes, per_node))
        # Sharded weights come while the layers before them compute, or they do not.
        waited_s = max(0.0, gathered_s - result.step_s) if hides else gathered_s
        plan = Plan(Engine("DDP" if hides else "DeepSpeed stage 0"), per_node, result.batch)
        compute = Compute({result.batch: result.step_s + waited_s})
        return clips_per_s(Inputs(_traffic(result), compute, result.network), plan, nodes) / (nodes * per_node)

    return rate(result.last) / rate(result.first)


def _traffic(result: Result) -> Traffic:
    layers = [Gradient(result.parameters // _LAYERS, (k + 1) / _LAYERS) for k in range(_LAYERS)]
    return Traffic(layers)


def _gathered_s(result: Result, team: Team) -> float:
    """Of all weights in bf16, twice a step; the reduce-scatter of the gradients is counted as an all-reduce."""
    return 2 * result.network.all_gather_s(2 * result.parameters, team) if result.is_sharded else 0.0
