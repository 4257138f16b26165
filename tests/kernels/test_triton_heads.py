"""The fused heads in Triton without a GPU: run in the interpreter, and compiled for two that are not there."""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip("triton", reason="triton is not installed: the GPU kernels were neither interpreted nor compiled")

from mmsada_kernels import heads as dispatch
from mmsada_kernels import layers
from mmsada_kernels.triton import heads
from tests.kernels.triton_build import MOST_SHARED, TARGETS, build_launch
from tests.kernels.triton_cases import Case, make_inputs

CHECKOUT = Path(__file__).resolve().parents[2]
LARGEST = Case(clips=512, width=1024, classes=64, num_classes=64, hidden=128, streams=4)
STEP = Case(clips=32, width=1024, hidden=100)
COMPILED = {
    "a step in bf16": (STEP, "bf16"),
    "a step in fp32": (STEP, "ieee"),
    "a step in tf32": (STEP, "tf32"),
    "the largest heads in fp32": (LARGEST, "ieee"),
}
COMPILED_SLOWLY = {
    "a large batch of bf16 features": (Case(clips=512, width=1024, hidden=100, features=torch.bfloat16), "bf16"),
    "one clip": (Case(clips=1, width=1024, hidden=100), "bf16"),
    "sizes that fit no block": (Case(clips=5, width=180, hidden=7, classes=3, num_classes=2, streams=1), "bf16"),
    "the largest heads in bf16": (LARGEST, "bf16"),
    "the largest heads in tf32": (LARGEST, "tf32"),
}

Launch = tuple[Any, tuple[Any, ...], dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def _empty_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Triton finds nothing that was compiled before this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def launches(case: Case, precision: str, monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """What the operator would launch, forward and backward."""
    found: list[Launch] = []
    monkeypatch.setattr(heads, "launch", lambda kernel, _, *args, **options: found.append((kernel, args, options)))
    monkeypatch.setattr(heads, "tf32_allowed", lambda: precision == "tf32")
    inputs, products = make_inputs(case), "bf16" if precision == "bf16" else "fp32"
    tensors = inputs.arguments[:5]
    with torch.no_grad():
        out = torch.ops.mmsada.adaptation_heads_triton(*inputs.arguments, products)
        torch.ops.mmsada.adaptation_heads_triton_backward(out[0], *tensors, list(out[3:]), inputs.reversal, products)
    assert {options.get("PRECISION", precision) for _, _, options in found} == {precision}
    return found


@pytest.mark.parametrize("capability", TARGETS)
@pytest.mark.parametrize("name", [*COMPILED, *(pytest.param(n, marks=pytest.mark.slow) for n in COMPILED_SLOWLY)])
def test_every_kernel_compiles_without_a_spill(name: str, capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, wrong = [f"sm_{capability}, {name}: kernel, registers, bytes spilled, bytes of shared memory"], False
    for kernel, args, options in launches(*(COMPILED | COMPILED_SLOWLY)[name], monkeypatch):
        built = build_launch(kernel, args, options, TARGETS[capability])
        rows.append(f"  {kernel.__name__:8} {built.registers:4} {built.spills:4} {built.shared:7}")
        wrong |= built.spills > 0 or built.shared > MOST_SHARED[capability]
    print("\n" + "\n".join(rows))
    assert len(rows) == 6
    assert not wrong, "\n".join(rows)


def test_a_kernel_that_spills_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, args, options = launches(STEP, "bf16", monkeypatch)[0]
    assert build_launch(kernel, args, options | {"maxnreg": 40}, TARGETS[90]).spills > 0


def test_the_shares_of_the_features_cover_them_once() -> None:
    for clips, width, streams in [(1, 4, 1), (8, 1024, 2), (32, 1000, 2), (512, 1024, 4), (100, 2048, 3)]:
        shares, span = heads.shares_of(clips, width, streams)
        assert (shares - 1) * span < width <= shares * span


def test_without_a_gpu_the_operator_says_so() -> None:
    with pytest.raises(ValueError, match="fused heads in Triton: features on cpu"):
        heads.adaptation_heads(*make_inputs(Case()).arguments)


Gpu = Callable[[tuple[int, int]], None]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    """Tensors without memory on a GPU that is not there, of the capability it is called with."""

    def describe(capability: tuple[int, int]) -> None:
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)

    dispatch._warn.cache_clear()
    layers._triton.cache_clear()
    with FakeTensorMode():
        yield describe
    layers._triton.cache_clear()


def form_for(**sizes: Any) -> Any:
    """What `mmsada_kernels.adaptation_heads` takes for tensors of a GPU."""
    inputs = make_inputs(Case(**sizes), device="cuda:0")
    return dispatch._on_gpu(
        inputs.features, inputs.classifier, inputs.discriminator, inputs.correspondence, inputs.num_classes
    )


def test_heads_and_layers_are_fused_on_the_same_gpus(gpu: Gpu) -> None:
    for capability in ((7, 5), (8, 0), (9, 0)):
        layers._triton.cache_clear()
        gpu(capability)
        fused = layers.is_compiled(torch.device("cuda", 0), torch.float32)
        assert fused == (capability >= (8, 0))
        assert form_for() is (heads.adaptation_heads if fused else None)


def test_a_torch_without_cuda_has_no_fused_heads(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu((9, 0))
    monkeypatch.setattr(torch.version, "cuda", None)  # as in ROCm's
    assert form_for() is None


def test_plain_pytorch_may_be_asked_for_at_any_time(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu((9, 0))
    assert form_for() is heads.adaptation_heads
    monkeypatch.setenv("MMSADA_KERNELS", "reference")
    assert form_for() is None
    monkeypatch.delenv("MMSADA_KERNELS")
    assert form_for() is heads.adaptation_heads


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"classes": 65}, "65 classes, at most 64"),
        ({"hidden": 129}, "129 hidden units, at most 128"),
        ({"streams": 5}, "5 streams, at most 4"),
    ],
    ids=["classes", "hidden units", "streams"],
)
def test_heads_that_are_too_large_are_told_of_once(gpu: Gpu, sizes: dict[str, int], told: str) -> None:
    gpu((9, 0))
    with pytest.warns(UserWarning, match=f"plain PyTorch, which is slower: {told}"):
        assert form_for(**sizes) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert form_for(**sizes) is None


def test_the_interpreted_kernels_agree_with_the_reference() -> None:
    """In a process of its own: triton decides at its import whether it interprets."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernels/interpreted_heads.py"],
        cwd=CHECKOUT,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout
