"""The layers between convolutions in C++ against their definition in fp64, and the definition against torch."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from mmsada_kernels import cpu, layers, layers_reference
from tests.kernels.layer_cases import CASES, POOLS, Case, Window, check_norm, check_pool, make_inputs, normal

compiled = pytest.mark.skipif(cpu.level() == "reference", reason="the compiled operators are not built here")
COMPILED = [name for name, case in CASES.items() if case.dtype != torch.float16]
# Channels at and around what one, two and a part of a vector hold.
WIDTHS = (4, 15, 16, 24, 31, 32, 33, 47, 48, 100)
NDHWC = torch.channels_last_3d


@compiled
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_batch_norm_is_the_definition(name: str) -> None:
    check_norm(torch.ops.mmsada, CASES[name])


@compiled
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_pools_are_the_definition(name: str, pool: str) -> None:
    check_pool(torch.ops.mmsada, CASES[name], POOLS[pool])


@compiled
@pytest.mark.parametrize("channels", WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_number_of_channels_is_computed(channels: int, dtype: torch.dtype) -> None:
    for sliced in (False, True):
        case = Case(channels=channels, dtype=dtype, sliced=sliced)
        check_norm(torch.ops.mmsada, case)
        check_pool(torch.ops.mmsada, case, POOLS["3x3x3 by 1"])


@compiled
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    per_group=st.integers(1, 3), groups=st.integers(1, 3), channels=st.integers(1, 70),
    sizes=st.tuples(*[st.integers(1, 7)] * 3), kernel=st.tuples(*[st.integers(1, 3)] * 3),
    stride=st.tuples(*[st.integers(1, 3)] * 3), sliced=st.booleans(), bf16=st.booleans(),
)  # fmt: skip
def test_any_sizes_give_the_definition(
    per_group: int, groups: int, channels: int, sizes: Any, kernel: Any, stride: Any, sliced: bool, bf16: bool
) -> None:
    dtype = torch.bfloat16 if bf16 else torch.float32
    case = Case(clips=per_group * groups, channels=channels, sizes=sizes, groups=groups, dtype=dtype, sliced=sliced)
    check_norm(torch.ops.mmsada, case)
    check_pool(torch.ops.mmsada, case, Window(kernel, stride))


@compiled
def test_a_channel_slice_leaves_its_neighbours_alone() -> None:
    at = make_inputs(Case(channels=20))
    wide = torch.full((4, 36, 3, 5, 6), 7.0).contiguous(memory_format=NDHWC)
    inside = wide[:, 9:29]
    torch.ops.mmsada.norm_relu_out(at.x, *at.norm, inside)
    torch.ops.mmsada.norm_relu_backward_out(at.gy, at.x, *at.norm, inside)
    outside = torch.cat([wide[:, :9], wide[:, 29:]], dim=1)
    assert (outside == 7).all()


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_result_does_not_depend_on_the_number_of_threads(dtype: torch.dtype) -> None:
    at = make_inputs(Case(clips=6, channels=40, sizes=(4, 13, 13), groups=3, dtype=dtype))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            statistics = torch.ops.mmsada.group_statistics(at.x, 3)
            bias = torch.ops.mmsada.norm_relu_backward_out(at.gy, at.x, *at.norm, at.out)
            results.append([*statistics, bias, at.out.clone()])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("nan", [torch.nan, -torch.nan])
def test_a_nan_reaches_every_clip_of_its_group_and_channel(dtype: torch.dtype, nan: float) -> None:
    """A NaN is never made a zero by the ReLU, nor lost in a pool: a broken step is seen."""
    x = torch.randn(4, 20, 2, 4, 4).to(dtype).contiguous(memory_format=NDHWC)
    x[1, 3, 0, 1, 1] = nan
    mean_GC, var_GC = torch.ops.mmsada.group_statistics(x, 2)
    pooled, _ = torch.ops.mmsada.max_pool(x, (1, 2, 2), (1, 2, 2), (0, 0, 0))
    out = torch.empty_like(pooled)
    torch.ops.mmsada.norm_relu_out(pooled, mean_GC, (var_GC + 1e-3).rsqrt(), torch.zeros(20), out)
    assert out[:2, 3].isnan().all()
    assert not out[2:].isnan().any()
    assert not out[:2, :3].isnan().any()


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pool_keeps_nans_of_either_sign_and_takes_both_zeros_for_one(dtype: torch.dtype) -> None:
    x = torch.tensor([-3.0, -torch.nan, 5.0, torch.nan, -0.0, 0.0, -torch.inf, -2.0]).to(dtype)
    x_NCTHW = x.view(1, 1, 1, 1, 8).expand(1, 40, 1, 1, 8).contiguous(memory_format=NDHWC)
    y, places = torch.ops.mmsada.max_pool(x_NCTHW, (1, 1, 2), (1, 1, 2), (0, 0, 0))
    assert y[0, :, 0, 0, :2].isnan().all()
    assert (y[0, :, 0, 0, 2:] == torch.tensor([0.0, -2.0]).to(dtype)).all()
    assert (places[0, :, 0, 0] == torch.tensor([1, 1, 0, 1])).all()


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    before=st.tuples(*[st.integers(0, 3)] * 3), after=st.tuples(*[st.integers(0, 3)] * 3), channels=st.integers(1, 5)
)
def test_padding_puts_zeros_around_and_converts(dtype: torch.dtype, before: Any, after: Any, channels: int) -> None:
    x = normal(Case(), (2, channels, 3, 4, 5), seed=1)
    found = layers.pad(x, before, after, dtype)
    assert torch.equal(found, layers_reference.pad(x, before, after, dtype))
    assert found.is_contiguous(memory_format=NDHWC)


def norm_of(x: Tensor, *, channels: int, groups: int) -> None:
    statistics = torch.ones(groups, channels)
    torch.ops.mmsada.norm_relu_out(x, statistics, statistics, torch.ones(channels), torch.empty_like(x))


def pool_back(x: Tensor, *, channels: int, width: int) -> None:
    gy = torch.ones(4, channels, 3, 4, width).contiguous(memory_format=NDHWC)
    places = gy.to(torch.uint8, memory_format=NDHWC)
    torch.ops.mmsada.max_pool_backward_out(gy, places, (1, 1, 3), (1, 1, 1), (0, 0, 1), False, x)


@compiled
@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda x: torch.ops.mmsada.group_statistics(x.contiguous(), 1), "channels_last_3d"),
        (lambda x: torch.ops.mmsada.group_statistics(x.double(), 1), "float32 or bfloat16"),
        (lambda x: torch.ops.mmsada.group_statistics(x, 3), "4 clips are not 3 groups"),
        (lambda x: torch.ops.mmsada.group_statistics(x[:0], 1), "0 clips are not 1 groups"),
        (lambda x: norm_of(x, channels=64, groups=1), "expected 8 values, one a channel, got 64"),
        (lambda x: norm_of(x, channels=8, groups=3), "4 clips are not 3 groups"),
        (lambda x: torch.ops.mmsada.max_pool(x, (1, 1, 1), (1, 1, 1), (1, 0, 0)), "outside its input"),
        (lambda x: torch.ops.mmsada.max_pool(x, (1, 1, 1), (1, 0, 1), (0, 0, 0)), "above 0"),
        (lambda x: pool_back(x, channels=16, width=5), "clips and channels of gx"),
        (lambda x: pool_back(x, channels=8, width=4), "5 places at stride 1 give no 4"),
    ],
)
def test_what_the_operators_do_not_take_is_refused(call: Any, told: str) -> None:
    x = torch.randn(4, 8, 3, 4, 5).contiguous(memory_format=NDHWC)
    with pytest.raises(RuntimeError, match=told):
        call(x)


@pytest.mark.parametrize("size", [(4, 8, 8), (5, 7, 9)])
@pytest.mark.parametrize("pool", ["1x3x3 by 2", "3x3x3 by 2", "2x2x2 by 2", "3x3x3 by 1"])
def test_the_definition_pools_as_torch_does(pool: str, size: tuple[int, int, int]) -> None:
    window = POOLS[pool]
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    before = window.before(x.shape[2:])
    wanted = F.max_pool3d(x, window.kernel, window.stride, tuple(before), ceil_mode=True)
    y, places = layers_reference.max_pool(x.detach(), window.kernel, window.stride, before)
    assert torch.equal(y, wanted)
    gy, gx = torch.randn_like(y), torch.empty_like(x.detach())
    wanted.backward(gy)
    layers_reference.max_pool_backward_out(gy, places, window.kernel, window.stride, before, False, gx)
    assert x.grad is not None
    torch.testing.assert_close(gx, x.grad)


def test_the_definition_normalises_as_torch_does() -> None:
    x = torch.randn(4, 5, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    bias_C = torch.randn(5, dtype=torch.float64, requires_grad=True)
    halves = [F.batch_norm(half, None, None, None, bias_C, training=True, eps=1e-3) for half in x.split(2)]
    wanted, gy = F.relu(torch.cat(halves)), torch.randn_like(x)
    wanted.backward(gy)
    mean_GC, var_GC = layers_reference.group_statistics(x.detach(), 2)
    norm = (mean_GC, (var_GC + 1e-3).rsqrt(), bias_C.detach())
    y, gx = torch.empty_like(x.detach()), torch.empty_like(x.detach())
    layers_reference.norm_relu_out(x.detach(), *norm, y)
    torch.testing.assert_close(y, wanted.detach())
    bias = layers_reference.norm_relu_backward_out(gy, x.detach(), *norm, gx)
    assert x.grad is not None and bias_C.grad is not None
    torch.testing.assert_close(gx, x.grad)
    torch.testing.assert_close(bias, bias_C.grad)
