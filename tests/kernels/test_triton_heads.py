"""The fused heads in Triton without a GPU: run in the interpreter, and compiled for two that are not there."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: the GPU kernels were neither interpreted nor compiled")

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
    """What the operator would launch, forward and backward, with a gradient of the losses and of the logits."""
    found: list[Launch] = []
    monkeypatch.setattr(heads, "launch", lambda kernel, _, *args, **options: found.append((kernel, args, options)))
    monkeypatch.setattr(heads, "tf32_allowed", lambda: precision == "tf32")
    inputs, products = make_inputs(case), "bf16" if precision == "bf16" else "fp32"
    tensors = inputs.arguments[:5]
    with torch.no_grad():
        out = torch.ops.mmsada.adaptation_heads_triton(*inputs.arguments, products)
        torch.ops.mmsada.adaptation_heads_triton_backward(
            out[0], out[2], *tensors, list(out[3:]), inputs.reversal, products
        )
    assert {options.get("PRECISION", precision) for _, _, options in found} == {precision}
    return found


@pytest.mark.parametrize("capability", TARGETS)
@pytest.mark.parametrize("name", COMPILED)
def test_every_kernel_compiles_without_a_spill(name: str, capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, wrong = [f"sm_{capability}, {name}: kernel, registers, bytes spilled, bytes of shared memory"], False
    for kernel, args, options in launches(*COMPILED[name], monkeypatch):
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
