"""The fused heads on a real GPU against the reference in fp64; needs torch, triton and mmsada_kernels alone."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from mmsada_kernels.triton import heads
from tests.kernels.triton_cases import CASES, Case, Inputs, check, defined, departures, fused, make_inputs

pytestmark = pytest.mark.usefixtures("exact_fp32")

STEP = Case(clips=32, width=1024, hidden=100)
ON_GPU = CASES | {
    "a whole step": STEP,
    "a whole step in bf16": replace(STEP, autocast=True),
    "a large batch": replace(STEP, clips=512),
    "a large batch in bf16": replace(STEP, clips=512, autocast=True),
    "as much as there may be": Case(clips=512, width=1024, classes=64, num_classes=64, hidden=128, streams=4),
    "features in fours, many": replace(STEP, width=1004),
}


@pytest.mark.parametrize("name", ON_GPU)
def test_values_and_gradients_are_the_references(name: str) -> None:
    inputs = make_inputs(ON_GPU[name], device="cuda")
    check(ON_GPU[name], inputs, fused(ON_GPU[name], inputs))


def test_tf32_products_are_used_where_pytorch_may_use_them() -> None:
    """tf32 has 11 bits of mantissa: 2^-11 for each operand, and visibly more than fp32's own error."""
    inputs = make_inputs(STEP, device="cuda")
    torch.backends.cuda.matmul.allow_tf32 = True
    worst = max(departures(fused(STEP, inputs), defined(inputs, rounded=False)).values())
    assert 2e-5 < worst < 5e-3


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
def test_torch_compile_sees_one_operator(autocast: bool) -> None:
    case = replace(STEP, autocast=autocast)
    inputs = make_inputs(case, device="cuda")
    check(case, inputs, fused(case, inputs, torch.compile(heads.adaptation_heads, fullgraph=True)))


@pytest.mark.parametrize("clips", [8, 512])
def test_equal_inputs_give_equal_bits(clips: int) -> None:
    case = replace(STEP, clips=clips, autocast=True)
    inputs = make_inputs(case, device="cuda")
    first = fused(case, inputs)
    for _ in range(20):
        again = fused(case, inputs)
        assert all(torch.equal(first[name], again[name]) for name in first)


def step(inputs: Inputs) -> tuple[torch.Tensor, ...]:
    """Losses and the gradients of all features and parameters."""
    losses_T, _, _ = heads.adaptation_heads(*inputs.arguments)
    return losses_T.detach(), *torch.autograd.grad(losses_T.sum(), inputs.leaves)


def test_a_captured_graph_follows_features_weights_and_reversal() -> None:
    inputs, other = (make_inputs(STEP, device="cuda", seed=seed) for seed in (0, 1))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(inputs)
    with torch.no_grad():
        for old, new in zip([*inputs.leaves, *inputs.weights], [*other.leaves, *other.weights], strict=True):
            old.copy_(new)
        inputs.reversal.fill_(0.9)
    graph.replay()
    wanted = step(inputs)
    assert all(torch.equal(a, b) for a, b in zip(captured, wanted, strict=True))


def test_opcheck_passes() -> None:
    inputs = make_inputs(Case(clips=3, width=20, hidden=8, classes=5, num_classes=4), device="cuda")
    torch.library.opcheck(torch.ops.mmsada.adaptation_heads_triton.default, (*inputs.arguments, "fp32"))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="a single CUDA device")
def test_the_device_of_the_tensors_need_not_be_the_current_one() -> None:
    inputs = make_inputs(STEP, device="cuda:1")
    assert torch.cuda.current_device() == 0
    check(STEP, inputs, fused(STEP, inputs))


def test_tensors_of_the_cpu_are_refused() -> None:
    with pytest.raises(ValueError, match="features on cpu"):
        heads.adaptation_heads(*make_inputs(Case()).arguments)
