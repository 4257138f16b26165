"""The layers between convolutions in Triton on a GPU, against their definition in fp64 there."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from mmsada_kernels import layers as chosen
from mmsada_kernels.triton import layers
from tests.kernels.layer_cases import CASES, POOLS, Case, check_norm, check_pool, make_inputs

REAL = Case(clips=8, channels=64, sizes=(8, 56, 56))
"""The maps of Conv3d_2 at 16 x 112 x 112."""


@pytest.mark.parametrize("name", CASES)
def test_batch_norm_is_the_definition(name: str) -> None:
    check_norm(layers, CASES[name], device="cuda")


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("name", CASES)
def test_pools_are_the_definition(name: str, pool: str) -> None:
    check_pool(layers, CASES[name], POOLS[pool], device="cuda")


@pytest.mark.parametrize("dtype", layers.FLOATS)
def test_maps_of_a_real_size_are_the_definition(dtype: torch.dtype) -> None:
    case = replace(REAL, dtype=dtype)
    check_norm(layers, case, device="cuda")
    check_pool(layers, case, POOLS["1x3x3 by 2"], device="cuda")
    check_pool(layers, replace(case, sliced=True, channels=24, sizes=(4, 14, 14)), POOLS["3x3x3 by 1"], device="cuda")


def test_they_are_what_a_gpu_is_given() -> None:
    assert all(chosen.is_compiled(torch.device("cuda"), dtype) for dtype in layers.FLOATS)
    assert not chosen.is_compiled(torch.device("cuda"), torch.float64)


def test_equal_inputs_give_equal_bits() -> None:
    at = make_inputs(replace(REAL, dtype=torch.bfloat16), device="cuda")
    settings = (POOLS["3x3x3 by 1"].kernel, POOLS["3x3x3 by 1"].stride, [1, 1, 1])
    results = []
    for _ in range(3):
        y, places = layers.max_pool(at.x, *settings)
        bias = layers.norm_relu_pool_backward_out(at.gy, y, places, at.x, *at.norm, *settings, at.out)
        results.append((*layers.group_statistics(at.x, 2), y, bias, at.out.clone()))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_cuda_graph_replays_them() -> None:
    at = make_inputs(Case(dtype=torch.bfloat16), device="cuda")

    def run() -> tuple[torch.Tensor, ...]:
        mean_GC, var_GC = layers.group_statistics(at.x, 2)
        layers.norm_relu_out(at.x, mean_GC, (var_GC + 1e-3).rsqrt(), at.bias_C, at.out)
        return mean_GC, layers.norm_relu_backward_out(at.gy, at.x, *at.norm, at.out)

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = run()
    at.x.copy_(at.x * 2 + 1)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(replayed, run(), strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="a single CUDA device")
def test_the_device_of_the_tensors_need_not_be_the_current_one() -> None:
    at, same = (make_inputs(Case(), device=device) for device in ("cuda:1", "cuda:0"))
    assert torch.cuda.current_device() == 0
    for found, wanted in zip(layers.group_statistics(at.x, 2), layers.group_statistics(same.x, 2), strict=True):
        assert torch.equal(found.cpu(), wanted.cpu())
