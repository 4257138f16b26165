"""How long a rank itself takes for an update, before it waits for the others: what a straggler is known by."""

import time

import torch
from torch import nn


class OwnTime:
    """From the begin of an update to the last gradient this rank computed.

    Gradients that have arrived mark the end, as every engine averages them over ranks after that (DeepSpeed at ZeRO 0
    after the whole backward, DDP in threads of its own beside it). Terms that gather features over ranks (mmd) make a
    rank wait inside its forward already; its time then includes the others'. The first update shows whose gradient
    comes last, as it does in all of them; that parameter alone is listened to from then on.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._is_gpu = device.type == "cuda"
        self._begin, self._end = 0.0, 0.0
        if self._is_gpu:  # not run on a GPU yet: the host runs ahead of the device, whose own clock must be asked
            self._first, self._last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._newest: torch.Tensor | None = None
        self._hooks = {
            parameter: parameter.register_post_accumulate_grad_hook(self._arrived)
            for parameter in module.parameters()
            if parameter.requires_grad
        }

    def begin(self) -> None:
        """An update begins."""
        if self._newest is not None:
            for parameter in [p for p in self._hooks if p is not self._newest]:
                self._hooks.pop(parameter).remove()
        self._begin = self._end = time.perf_counter()
        if self._is_gpu:
            self._first.record()
            self._last.record()

    def seconds(self) -> float:
        """Of this update; waits for the device."""
        if not self._is_gpu:
            return self._end - self._begin
        self._last.synchronize()
        return self._first.elapsed_time(self._last) / 1000

    def close(self) -> None:
        """Take the hooks off the module."""
        for hook in self._hooks.values():
            hook.remove()

    def _arrived(self, parameter: torch.Tensor) -> None:
        self._newest, self._end = parameter, time.perf_counter()
        if self._is_gpu:
            self._last.record()
