"""Inputs for the layers between convolutions, and the comparison of a form of them with the definition in fp64.

Needs torch and mmsada_kernels alone: the tests of the C++ form, of Triton's interpreter and of a GPU share it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmsada_kernels import layers_reference

reference: Any = layers_reference  # called with lists in place of tensors one by one
Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Window:
    """A max pool with SAME padding."""

    kernel: Triple
    stride: Triple

    def before(self, sizes: torch.Size) -> list[int]:
        return [
            max((-(-n // s) - 1) * s + k - n, 0) // 2 for n, k, s in zip(sizes, self.kernel, self.stride, strict=True)
        ]


POOLS = {  # of I3D, and one whose stride is longer than its kernel
    "1x3x3 by 2": Window((1, 3, 3), (1, 2, 2)),
    "3x3x3 by 2": Window((3, 3, 3), (2, 2, 2)),
    "2x2x2 by 2": Window((2, 2, 2), (2, 2, 2)),
    "3x3x3 by 1": Window((3, 3, 3), (1, 1, 1)),
    "1x2x2 by 3": Window((1, 2, 2), (1, 3, 3)),
}


@dataclass(frozen=True)
class Case:
    """Sizes of an input, and how it lies in memory."""

    clips: int = 4
    channels: int = 12
    sizes: Triple = (3, 5, 6)
    groups: int = 2
    dtype: torch.dtype = torch.float32
    sliced: bool = False
    """Inputs and outputs are channel slices of wider tensors."""
    offset: float = 0.0
    """Mean of the input, in standard deviations."""


CASES = {
    "as in a step": Case(),
    "one group": Case(groups=1),
    "every clip a group": Case(groups=4),
    "one channel": Case(channels=1),
    "more channels than a block": Case(channels=80, sizes=(2, 3, 3)),
    "more rows than a program takes": Case(clips=2, channels=4, sizes=(4, 26, 27), groups=1),
    "one place": Case(sizes=(1, 1, 1)),
    "one frame": Case(sizes=(1, 4, 7)),
    "channel slices": Case(sliced=True),
    "a mean far from zero": Case(offset=1000.0),
    "bf16": Case(dtype=torch.bfloat16),
    "bf16 channel slices": Case(dtype=torch.bfloat16, sliced=True, channels=20),
    "fp16": Case(dtype=torch.float16),
}


def normal(case: Case, shape: tuple[int, ...], *, seed: int, device: str = "cpu", offset: float = 0.0) -> Tensor:
    """Random values as a case wants them to lie in memory."""
    rng = torch.Generator().manual_seed(seed)
    clips, channels, *sizes = shape
    wide = torch.randn(clips, channels + 8 * case.sliced, *sizes, generator=rng) + offset
    x = wide.to(device, case.dtype, memory_format=torch.channels_last_3d)
    return x[:, 3 : 3 + channels] if case.sliced else x


@dataclass(frozen=True)
class Inputs:
    """An input, an upstream gradient of its shape, and where a gradient goes; statistics in fp32."""

    x: Tensor
    gy: Tensor
    out: Tensor
    mean_GC: Tensor
    inv_std_GC: Tensor
    bias_C: Tensor

    @property
    def norm(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.mean_GC, self.inv_std_GC, self.bias_C


def make_inputs(case: Case, *, device: str = "cpu") -> Inputs:
    """The statistics are those of x."""
    shape = (case.clips, case.channels, *case.sizes)
    x = normal(case, shape, seed=1, device=device, offset=case.offset)
    mean_GC, var_GC = reference.group_statistics(x.double(), case.groups)
    return Inputs(
        x=x,
        gy=normal(case, shape, seed=2, device=device),
        out=normal(case, shape, seed=3, device=device),
        mean_GC=mean_GC.float(),
        inv_std_GC=(var_GC + 1e-3).rsqrt().float(),
        bias_C=torch.randn(case.channels, generator=torch.Generator().manual_seed(4)).to(device),
    )


def exact(*tensors: Tensor) -> list[Tensor]:
    return [x.double() for x in tensors]


def near(found: Tensor, wanted: Tensor, *, case: Case, sums: bool = False) -> None:
    """Raise AssertionError where they differ: results of the case's dtype by one rounding of it, sums (fp32 whatever
    the dtype) and fp32 results by what thousands of fp32 operations leave.
    """
    step = 3e-5 if sums else max(3e-5, torch.finfo(case.dtype).eps)
    if case.offset:
        step = max(step, 1e-6 * case.offset)  # of the input itself only so much is left in fp32
    assert found.shape == wanted.shape
    scale = max(1.0, wanted.abs().max().item())
    worst = (found.double() - wanted).abs().max().item()
    assert worst <= step * scale, f"departs by {worst:.1e} where {step * scale:.1e} is allowed"


def check_norm(form: Any, case: Case, *, device: str = "cpu") -> None:
    """Statistics, forward and backward of the batch norm in `form`, which has the functions of `layers_reference`."""
    at = make_inputs(case, device=device)
    for found, wanted in zip(
        form.group_statistics(at.x, case.groups), reference.group_statistics(at.x.double(), case.groups), strict=True
    ):
        assert found.dtype == torch.float32
        near(found, wanted, case=case, sums=not case.offset)
    wanted = torch.empty_like(at.out, dtype=torch.float64)
    reference.norm_relu_out(*exact(at.x, *at.norm), wanted)
    form.norm_relu_out(at.x, *at.norm, at.out)
    near(at.out, wanted, case=case)
    bias = reference.norm_relu_backward_out(*exact(at.gy, at.x, *at.norm), wanted)
    near(form.norm_relu_backward_out(at.gy, at.x, *at.norm, at.out), bias, case=case, sums=True)
    near(at.out, wanted, case=case)


def check_pool(form: Any, case: Case, window: Window, *, device: str = "cpu") -> None:
    """Forward and backward of a pool, alone and behind a batch norm."""
    at = make_inputs(case, device=device)
    settings = (window.kernel, window.stride, window.before(at.x.shape[2:]))
    pooled, places = form.max_pool(at.x, *settings)
    wanted_pooled, wanted_places = reference.max_pool(at.x.double(), *settings)
    assert torch.equal(pooled.double(), wanted_pooled)
    assert torch.equal(places, wanted_places)
    assert pooled.is_contiguous(memory_format=torch.channels_last_3d)
    gy = normal(case, tuple(pooled.shape), seed=5, device=device)
    for adds in (False, True):
        wanted = at.out.double()
        reference.max_pool_backward_out(gy.double(), places, *settings, adds, wanted)
        form.max_pool_backward_out(gy, places, *settings, adds, at.out)
        near(at.out, wanted, case=case)
    bias = reference.norm_relu_pool_backward_out(*exact(gy, pooled), places, *exact(at.x, *at.norm), *settings, wanted)
    found = form.norm_relu_pool_backward_out(gy, pooled, places, at.x, *at.norm, *settings, at.out)
    near(found, bias, case=case, sums=True)
    near(at.out, wanted, case=case)
