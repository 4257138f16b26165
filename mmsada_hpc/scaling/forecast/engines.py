"""What each engine sends in a step, when it may begin, and how much of that a step has to wait for.

Read from train/engine.py, train/overlap.py, torch's DistributedDataParallel and DeepSpeed 0.19.8 (runtime/engine.py,
runtime/zero/stage_1_and_2.py):

- plain DDP cuts the gradients, in the order of the backward, into buckets of 25 MiB after a first of 1 MiB;
- stage 0 all-reduces one flat message after the backward; with `train.overlap` messages of `BUCKET_BYTES` during it;
- stages 1 and 2 fill buckets of 5e8 numbers, more than there are here, so that both all-reduce one message after the
  backward, whatever `overlap_comm` says (`use_multi_rank_bucket_allreduce`: there is no reduce-scatter); after the
  update they gather the fp32 weights. The all-reduce of one number for the norm is left out.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mmsada_hpc.errors import UserError
from mmsada_hpc.scaling.forecast.network import Network, Team
from mmsada_hpc.train.overlap import BUCKET_BYTES

Dtype = Literal["fp32", "bf16"]
SILENT = "no communication"
OVERLAPPED = "DeepSpeed stage 0 overlap"
ENGINES = (
    "DDP",
    SILENT,
    "DDP contiguous",
    "DeepSpeed stage 0",
    OVERLAPPED,
    "DeepSpeed stage 1",
    "DeepSpeed stage 1 overlap",
    "DeepSpeed stage 2",
)
_DDP_FIRST, _DDP_BUCKET = 1 << 20, 25 << 20
_BYTES: dict[str, int] = {"fp32": 4, "bf16": 2}
_DTYPE = re.compile(r" (fp32|bf16) gradients$")


@dataclass(frozen=True)
class Gradient:
    """Of one layer, in the order in which the backward has them."""

    elements: int
    ready: float
    """Share of the backward after which it is there."""


@dataclass(frozen=True)
class Message:
    """One transfer of a step."""

    size: float
    """Bytes, the whole on every rank."""
    ready: float
    """Share of the backward after which it may begin; 1 = after it."""
    gathers: bool = False
    """All-gather, else all-reduce."""


@dataclass(frozen=True)
class Engine:
    """How training averages its gradients."""

    name: str
    """One of `ENGINES`."""
    gradients: Dtype = "fp32"
    """What they travel in."""

    @property
    def overlaps(self) -> bool:
        """Whether messages leave during the backward."""
        return self.name in ("DDP", "DDP contiguous", OVERLAPPED)

    def messages(self, gradients: Sequence[Gradient]) -> list[Message]:
        """Of a step, in the order in which they are sent."""
        if self.name == SILENT:
            return []
        each, elements = _BYTES[self.gradients], sum(one.elements for one in gradients)
        if self.name == OVERLAPPED:
            return _buckets(gradients, each, (BUCKET_BYTES,))
        if self.overlaps:  # DDP cuts by the fp32 weights, and its hook then makes each message shorter
            cut = _buckets(gradients, 4, (_DDP_FIRST, _DDP_BUCKET))
            return [replace(one, size=one.size * each / 4) for one in cut]
        found = [Message(each * elements, 1.0)]
        return found if self.name == "DeepSpeed stage 0" else [*found, Message(4 * elements, 1.0, gathers=True)]


def find_engine(name: str, *, precision: Dtype = "fp32") -> Engine:
    """By its name in `bench comm`, such as `DDP` or `DeepSpeed stage 1 bf16 gradients`.

    Args:
        precision: of the step, which DeepSpeed's gradients travel in where the name does not say.

    Raises:
        UserError: there is none of that name.
    """
    match = _DTYPE.search(name)
    base = name.removesuffix(match[0]) if match else name
    if base not in ENGINES:
        raise UserError(f"{name!r}: no such engine; one of {', '.join(ENGINES)}, each also with ' bf16 gradients'")
    usual: Dtype = precision if base.startswith("DeepSpeed") else "fp32"
    return Engine(base, match[1] if match else usual)  # type: ignore[arg-type]


def _buckets(gradients: Sequence[Gradient], each: int, limits: Sequence[int]) -> list[Message]:
    """A bucket is sent when it has reached its limit; the last of `limits` is that of all further ones."""
    found, size = list[Message](), 0
    for k, one in enumerate(gradients):
        size += each * one.elements
        if size >= limits[min(len(found), len(limits) - 1)] or k == len(gradients) - 1:
            found.append(Message(size, one.ready))
            size = 0
    return found


@dataclass(frozen=True)
class Exchange:
    """Of a step's communication, seconds."""

    total_s: float
    """All messages one after another."""
    shown_s: float
    """That the step takes longer for it."""


def exposed(
    messages: Sequence[Message], network: Network, team: Team, *, backward_s: float, agreement_bytes: float = 0
) -> Exchange:
    """What a step shows of its messages, which go out in their order as they become ready.

    What the ranks' own processors do for them (`Link.host_s_per_byte`) makes the backward as much longer.

    Args:
        backward_s: alone.
        agreement_bytes: of the small all-reduce at the end of a step, which nothing hides.
    """
    wire = network.without_host()
    costs = [_cost_s(one, network, team) for one in messages]
    early = [k for k, one in enumerate(messages) if one.ready < 1]
    longer_s = sum(costs[k] - _cost_s(messages[k], wire, team) for k in early)
    stretched_s = backward_s + longer_s
    end_s = _last_end_s(messages, costs, network, team, backward_s=stretched_s)
    shown_s = max(end_s, stretched_s) - backward_s if messages else 0.0
    agreed_s = network.all_reduce_s(agreement_bytes, team) if agreement_bytes else 0.0
    return Exchange(sum(costs) + agreed_s, max(0.0, shown_s) + agreed_s)


def _last_end_s(
    messages: Sequence[Message], costs: Sequence[float], network: Network, team: Team, *, backward_s: float
) -> float:
    """When the last message is done. Those that are under way together share the link, so that only what a message
    waits for is hidden behind another.
    """
    free = network.instant()
    ends, sent_s = list[float](), 0.0
    for k, (one, cost_s) in enumerate(zip(messages, costs, strict=True)):
        begin_s = one.ready * backward_s
        if k >= network.in_flight:
            begin_s = max(begin_s, ends[k - network.in_flight])
        bytes_s = _cost_s(one, free, team)
        sent_s = max(sent_s, begin_s) + bytes_s
        ends.append(sent_s + cost_s - bytes_s)
    return max(ends, default=0.0)


def _cost_s(one: Message, network: Network, team: Team) -> float:
    return network.all_gather_s(one.size, team) if one.gathers else network.all_reduce_s(one.size, team)
