"""The layers between convolutions in Triton: their interpreter's tests in a process of their own, and what they take
when compiled for GPUs that are not here.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton", reason="triton is not installed")

from mmsada_kernels.triton import layers  # noqa: E402
from tests.kernels.layer_cases import POOLS  # noqa: E402
from tests.kernels.triton_build import TARGETS, build_launch  # noqa: E402

HERE = Path(__file__).parent
SLOW = pytest.mark.slow


@dataclass(frozen=True)
class Launch:
    """One start of a kernel, kept in place of being done."""

    kernel: Any
    args: tuple[Any, ...]
    options: dict[str, Any]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    found: list[Launch] = []

    def keep(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
        found.append(Launch(kernel, args, options))

    monkeypatch.setattr(layers, "launch", keep)
    monkeypatch.setattr(layers, "INTERPRETED", True)  # tensors of the CPU will do, as nothing runs
    return found


def test_the_interpreter_gives_the_definition() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", str(HERE / "interpreted_layers.py")]
    done = subprocess.run(
        command,
        cwd=HERE.parents[1],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout


def rows(channels: int, dtype: torch.dtype, wide: int = 0) -> Tensor:
    """Two clips of the size of Mixed_3's, of which nothing is touched."""
    x = torch.empty((2, channels + wide, 8, 28, 28), dtype=dtype, memory_format=torch.channels_last_3d)
    return x[:, :channels]


def norm_launches(channels: int, dtype: torch.dtype, wide: int = 0) -> None:
    x = rows(channels, dtype, wide)
    norm = (torch.empty(2, channels), torch.empty(2, channels), torch.empty(channels))
    layers.group_statistics(x, 2)
    layers.norm_relu_out(x, *norm, x)
    layers.norm_relu_backward_out(x, x, *norm, x)


def pool_launches(name: str, channels: int, dtype: torch.dtype) -> None:
    x = rows(channels, dtype)
    norm = (torch.empty(2, channels), torch.empty(2, channels), torch.empty(channels))
    settings = (POOLS[name].kernel, POOLS[name].stride, POOLS[name].before(x.shape[2:]))
    y, places = layers.max_pool(x, *settings)
    layers.max_pool_backward_out(y, places, *settings, True, x)
    layers.norm_relu_pool_backward_out(y, y, places, x, *norm, *settings, x)


def taken(launches: list[Launch], capability: int) -> None:
    """Compile each launch, print what it takes, and fail on a spilled register."""
    for one in launches:
        built = build_launch(one.kernel, one.args, one.options, TARGETS[capability])
        print(f"sm_{capability} {one.kernel.__name__}: {built.registers} registers, {built.shared} bytes shared")
        assert built.spills == 0, f"{one.kernel.__name__} spills {built.spills} bytes"
        assert built.shared <= 48 * 1024


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("capability", TARGETS)
@pytest.mark.parametrize(("channels", "wide"), [(64, 0), pytest.param(16, 16, marks=SLOW)], ids=["64", "a slice of 16"])
def test_batch_norm_compiles_without_spills(
    capability: int, dtype: torch.dtype, channels: int, wide: int, launches: list[Launch]
) -> None:
    norm_launches(channels, dtype, wide)
    names = ["moments", "statistics", "norm_relu", "passed_sums", "means", "norm_relu_backward"]
    assert [one.kernel.__name__ for one in launches] == names
    taken(launches, capability)


@pytest.mark.parametrize("capability", TARGETS)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *(("3x3x3 by 1", dtype) for dtype in (torch.bfloat16, torch.float32)),
        *(pytest.param(n, torch.bfloat16, marks=SLOW) for n in POOLS if n != "3x3x3 by 1" and not n.endswith("3")),
    ],
)
def test_pools_compile_without_spills(capability: int, name: str, dtype: torch.dtype, launches: list[Launch]) -> None:
    pool_launches(name, 64, dtype)
    names = ["max_pool", "max_pool_backward", "passed_sums", "means", "max_pool_backward"]
    assert [one.kernel.__name__ for one in launches] == names
    taken([one for one in launches if one.kernel.__name__.startswith("max_pool")], capability)
