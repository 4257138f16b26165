"""Gradients that are averaged over the ranks while the backward still goes on. DeepSpeed's stage 0 begins to average
when the whole backward is done, so none of it is hidden (D17); here its engine is told not to, and hooks do it.

Exact: the averages are those of DeepSpeed's own way (the sum in the dtype that gradients travel in, times 1 / ranks);
with two ranks bit by bit, with more up to the order of a sum, which depends on where a message is cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET_BYTES = 1 << 20
"""Of a message: small enough that the first leaves early and little is left at the end, large enough that its fixed
cost does not show. Of 0.25 to 25 MiB this exposed the least, or nearly, on all links that were tried (gloo, 2 and 4
ranks, 1 and 2 Gbit/s): of two I3Ds' 98 MB at 2 Gbit/s, beside a backward of 800 ms, 38 ms of the 762 ms after it.
"""


@dataclass
class _Bucket:
    """Parameters whose gradients travel in one message."""

    parameters: list[nn.Parameter]
    flat: Tensor
    views: list[Tensor]
    """Each parameter's place in `flat`, in its own shape and strides."""
    missing: set[int] = field(default_factory=set)
    """Which of them have no gradient of this backward yet."""
    work: Any = None
    """The all-reduce, once it has begun."""


class OverlappedAveraging:
    """Averages `p.grad` over all ranks: `begin` before the last backward of an update, `finish` after it.

    Buckets are filled from the last parameter to the first, which is about the order in which the backward comes by
    them, and begin in that order on every rank, whatever becomes ready first: ranks that began different messages would
    wait for each other for ever. A parameter that gets no gradient holds back its bucket and those after it until
    `finish`, where it counts as zero (or as what earlier micro-batches have left), as in DeepSpeed; nothing hangs.
    Until `finish` every `p.grad` stays this rank's own.

    What else is sent during the backward (`gather_rows`) goes over the same process group: all ranks must have the same
    graph, as with DDP (law 3 sees to it).

    On a GPU: a hook runs in the stream of the gradients it waits for, NCCL waits for that stream, and `finish` lets the
    current stream wait for NCCL. Not run on several GPUs yet.

    Args:
        parameters: all of a module, in the order of their creation and on one device. Their strides decide those of the
            messages, so change the memory format before.
        dtype: what gradients travel in.
        bucket_bytes: a message is sent when it has at least this many.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], dtype: torch.dtype, *, bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        trained = [p for p in parameters if p.requires_grad and p.numel()]
        sizes = [p.numel() * dtype.itemsize for p in trained]
        self._buckets = [_bucket([trained[i] for i in part], dtype) for part in cut_into_buckets(sizes, bucket_bytes)]
        self._next, self._is_on = 0, False
        self._handles = [
            parameter.register_post_accumulate_grad_hook(self._hook(bucket, place))
            for bucket in self._buckets
            for place, parameter in enumerate(bucket.parameters)
        ]

    @property
    def sent(self) -> int:
        """Messages that have begun since `begin`."""
        return self._next

    def begin(self) -> None:
        """Average what the next backward leaves."""
        for bucket in self._buckets:
            bucket.missing = set(range(len(bucket.parameters)))
        self._next, self._is_on = 0, True

    def finish(self) -> None:
        """Wait for every message, and write the averages into `p.grad`."""
        self._is_on = False
        while self._next < len(self._buckets):
            self._send_next()
        scale = 1.0 / dist.get_world_size()
        for bucket in self._buckets:
            bucket.work.wait()
            bucket.work = None
            bucket.flat.mul_(scale)
            torch._foreach_copy_([_gradient(p) for p in bucket.parameters], bucket.views)

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._buckets = []

    def _hook(self, bucket: _Bucket, place: int) -> Any:
        def arrived(parameter: Tensor) -> None:
            if self._is_on:
                bucket.missing.discard(place)
                self._send_ready()

        return arrived

    def _send_ready(self) -> None:
        while self._next < len(self._buckets) and not self._buckets[self._next].missing:
            self._send_next()

    @torch.no_grad()
    def _send_next(self) -> None:
        bucket = self._buckets[self._next]
        self._next += 1
        torch._foreach_copy_(bucket.views, [_gradient(p) for p in bucket.parameters])
        bucket.work = dist.all_reduce(bucket.flat, async_op=True)


def cut_into_buckets(sizes: Sequence[int], bucket_bytes: int) -> list[list[int]]:
    """Indices of each bucket, from the last to the first; a bucket is closed when it holds `bucket_bytes`."""
    found: list[list[int]] = []
    held = bucket_bytes
    for i in reversed(range(len(sizes))):
        if held >= bucket_bytes:
            found.append([])
            held = 0
        found[-1].append(i)
        held += sizes[i]
    return found


def _bucket(parameters: list[nn.Parameter], dtype: torch.dtype) -> _Bucket:
    flat = torch.zeros(sum(p.numel() for p in parameters), dtype=dtype, device=parameters[0].device)
    parts = flat.split([p.numel() for p in parameters])
    return _Bucket(parameters, flat, [_shaped(part, p) for part, p in zip(parts, parameters, strict=True)])


def _shaped(part: Tensor, parameter: Tensor) -> Tensor:
    """`part` in the parameter's shape, and in its memory format, so that no copy permutes."""
    if parameter.dim() == 5 and parameter.is_contiguous(memory_format=torch.channels_last_3d):
        return part.as_strided(parameter.shape, parameter.stride(), part.storage_offset())
    return part.view(parameter.shape)


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
