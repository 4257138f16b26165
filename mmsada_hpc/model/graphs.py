"""A network's training forward and backward as CUDA graphs: captured once for each shape, then replayed by two calls of
the host in place of thousands.

Not run on a GPU yet.

`torch.cuda.make_graphed_callables` does the like; this differs where training here needs it:
- a capture has leaves of its own, on the memory of the parameters, so that it meets no hook and no stream of an engine
  (DDP's and DeepSpeed's are hung on before the first batch is seen);
- gradients leave as copies, so that micro-batches of one update add up (a replay overwrites the last one's);
- other threads may use the device while it captures (DALI's do).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

WARM_UPS = 3
"""Forwards and backwards before a capture: libraries choose their kernels and make their workspaces there."""

Key = tuple[Any, ...]


@dataclass(frozen=True)
class _Captured:
    """Two graphs, and the memory that they read and write."""

    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph
    clips: Mapping[str, Tensor]
    features: Mapping[str, Tensor]
    by_features: tuple[Tensor, ...]
    by_parameters: tuple[Tensor, ...]


class Graphs:
    """The graphs of one network, whose `forward(clips, domains)` gives features by stream."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._captured: dict[Key, _Captured] = {}
        self._pool: Any = None
        self.is_capturing = False

    def __call__(self, clips_NTHWC: Mapping[str, Tensor], domains: Sequence[int]) -> dict[str, Tensor]:
        """As the network itself; valid until the next call."""
        parameters = list(self._network.parameters())
        key = _key(clips_NTHWC, domains, parameters)
        if key not in self._captured:
            self._captured[key] = self._capture(clips_NTHWC, domains)
        graph = self._captured[key]
        features = _Replay.apply(graph, clips_NTHWC, *parameters)
        return dict(zip(graph.features, features, strict=True))

    def _capture(self, clips_NTHWC: Mapping[str, Tensor], domains: Sequence[int]) -> _Captured:
        clips = {stream: x.detach().clone() for stream, x in clips_NTHWC.items()}
        device = next(iter(clips.values())).device
        with torch.enable_grad(), torch.cuda.device(device), self._untouched(), _autocast_without_cache():
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            torch.cuda.synchronize()
            with torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(WARM_UPS):
                    self._run(clips, domains)
            torch.cuda.synchronize()
            forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
            leaves = self._leaves()
            with torch.cuda.graph(forward, pool=self._pool, capture_error_mode="thread_local"):
                features = functional_call(self._network, leaves, (clips, domains))
            by_features = tuple(torch.zeros_like(x) for x in features.values())
            with torch.cuda.graph(backward, pool=self._pool, capture_error_mode="thread_local"):
                found = torch.autograd.grad(tuple(features.values()), tuple(leaves.values()), by_features)
        features = {stream: x.detach() for stream, x in features.items()}
        return _Captured(forward, backward, clips, features, by_features, found)

    def _leaves(self) -> dict[str, Tensor]:
        return {name: p.detach().requires_grad_() for name, p in self._network.named_parameters()}

    def _run(self, clips: Mapping[str, Tensor], domains: Sequence[int]) -> None:
        leaves = self._leaves()
        features = tuple(functional_call(self._network, leaves, (clips, domains)).values())
        torch.autograd.grad(features, tuple(leaves.values()), tuple(torch.zeros_like(x) for x in features))

    @contextmanager
    def _untouched(self) -> Iterator[None]:
        """Warm-ups leave no trace in the network's buffers, such as sums of statistics."""
        buffers = list(self._network.buffers())
        before = [buffer.clone() for buffer in buffers]
        self.is_capturing = True
        try:
            yield
        finally:
            self.is_capturing = False
            with torch.no_grad():
                for buffer, value in zip(buffers, before, strict=True):
                    buffer.copy_(value)


class _Replay(torch.autograd.Function):
    """Parameters are arguments so that their gradients go where an engine looks for them."""

    @staticmethod
    def forward(ctx: Any, graph: _Captured, clips: Mapping[str, Tensor], *parameters: Tensor) -> tuple[Tensor, ...]:
        for stream, x in graph.clips.items():
            x.copy_(clips[stream])
        graph.forward.replay()
        ctx.graph = graph
        return tuple(x.detach() for x in graph.features.values())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *by_features: Tensor) -> tuple[Tensor | None, ...]:
        graph: _Captured = ctx.graph
        for into, grad in zip(graph.by_features, by_features, strict=True):
            into.copy_(grad)
        graph.backward.replay()
        return None, None, *(grad.clone() for grad in graph.by_parameters)


def _key(clips: Mapping[str, Tensor], domains: Sequence[int], parameters: Sequence[Tensor]) -> Key:
    """Everything that a capture holds fast: shapes, domains, precision, and where the parameters lie."""
    shapes = tuple((stream, x.shape, x.stride(), x.dtype, x.device) for stream, x in clips.items())
    return shapes, tuple(domains), _autocast_dtype(), tuple(p.data_ptr() for p in parameters)


def _autocast_dtype() -> torch.dtype | None:
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None


def _autocast_without_cache() -> torch.autocast:
    """What is in force, without the cache of converted weights, which would outlive a capture."""
    dtype = _autocast_dtype()
    return torch.autocast("cuda", dtype, enabled=dtype is not None, cache_enabled=False)
