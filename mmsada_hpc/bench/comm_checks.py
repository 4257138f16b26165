"""What else is known of an engine beside its time: whether its updates are right, what it keeps in memory, and what it
sends.
"""

import ctypes
import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mmsada_hpc.bench.comm_ways import Way
from mmsada_hpc.cluster.world import World

UPDATES = 3
_LOCAL_SENDS = Path("/proc/self/net/dev")


@dataclass(frozen=True)
class Checks:
    """Of one engine, as rank 0 found it."""

    update_difference: float | None
    """Distance of the weights after one update from those of one process that saw all ranks' clips, relative to the
    distance that these went: 0 = the same, 1.4 = another way. None on the other ranks.
    """
    weights_difference: float | None
    """The same after `UPDATES` updates, relative to the weights. Here also the last bits of a sum show, which trained
    networks part at (law 1): compare it with that of plain DDP.
    """
    held_MB: float | None
    """Memory that came with the engine and stayed, between a backward and its update: weights, gradients, optimiser
    state, messages. Of the allocator, so it counts what no Python object shows; None where the C library cannot tell.
    """
    optimizer_MB: float
    """The optimiser's state alone."""
    sent_MB: float | None
    """That each rank of this host sent in an update over any network interface (the least of `UPDATES`, as others' is
    counted too); RDMA is not seen. None where the kernel does not say.
    """

    def details(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None}


class Reference:
    """Weights of one process before and after each of `UPDATES` updates; only rank 0 has them."""

    def __init__(self, way: Way) -> None:
        self._weights = [_weights(way)]
        for _ in range(UPDATES):
            way.step()
            self._weights.append(_weights(way))

    def differences(self, first: Mapping[str, Tensor], last: Mapping[str, Tensor]) -> tuple[float, float]:
        """`update_difference` and `weights_difference` of an engine by its weights after the first and the last."""
        begin, after = self._weights[:2]
        went = {name: after[name] - value for name, value in begin.items()}
        return _distance(first, after) / _norm(went), _distance(last, self._weights[-1]) / _norm(self._weights[-1])


def check(way: Way, world: World, reference: Reference | None, *, held_before: int | None) -> Checks:
    """Make the first updates of an engine, and look at it; on every rank.

    Args:
        reference: on rank 0.
        held_before: `held_bytes()` before the engine was made.
    """
    sent, weights = list[int](), []
    for number in range(UPDATES):
        dist.barrier()
        before = sent_bytes()
        way.backward()
        held = held_bytes()
        way.update()
        dist.barrier()
        sent.append((sent_bytes() or 0) - (before or 0))
        if number in (0, UPDATES - 1):
            weights.append(_weights(way))
    growth = None if held is None or held_before is None else (held - held_before) / 1e6
    update_off, weights_off = (None, None) if reference is None else reference.differences(*weights)
    return Checks(
        update_off,
        weights_off,
        growth,
        _state_bytes(way.optimizer) / 1e6,
        min(sent) / world.local_size / 1e6 if sent_bytes() is not None else None,
    )


def held_bytes() -> int | None:
    """That are allocated now: of the GPU where there is one, else of the C library."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        return None
    libc.mallinfo2.restype = _MallInfo
    found = libc.mallinfo2()
    return int(found.uordblks) + int(found.hblkhd)


class _MallInfo(ctypes.Structure):
    """`struct mallinfo2` of glibc 2.33 and later."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def sent_bytes() -> int | None:
    """Over all interfaces of this host (of this process's network namespace) since it is up."""
    try:
        lines = _LOCAL_SENDS.read_text(encoding="ascii").splitlines()[2:]
    except OSError:
        return None
    return sum(int(line.partition(":")[2].split()[8]) for line in lines)


def _weights(way: Way) -> Mapping[str, Tensor]:
    return {name: p.detach().clone() for name, p in way.module.named_parameters()}


def _distance(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    return _norm({name: mine[name] - value for name, value in theirs.items()})


def _norm(weights: Mapping[str, Tensor]) -> float:
    return float(sum(float(value.double().square().sum()) for value in weights.values()) ** 0.5)


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    tensors: Sequence[Tensor] = [
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)
    ]
    return sum(value.untyped_storage().nbytes() for value in tensors)
