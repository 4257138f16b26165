"""A checkout on a GPU host that has torch, triton, numpy and pytest alone: the kernels, the model and its benchmarks
import nothing else (the first two no numpy either), and `make gpu` runs.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

CHECKOUT = Path(__file__).resolve().parents[1]
OTHERS = (
    "av", "cv2", "deepspeed", "hypothesis", "matplotlib", "mpi4py", "nvidia", "PIL", "psutil", "pydantic",
    "safetensors", "scipy", "sklearn", "submitit", "tensorboard", "tqdm", "yaml",
)  # fmt: skip
MODULES = (
    "mmsada_kernels", "mmsada_kernels.layers", "mmsada_kernels.triton.heads", "mmsada_kernels.triton.layers",
    "mmsada_hpc.model.streams",
)  # fmt: skip
BENCHMARKS = ("mmsada_hpc.bench.command", "mmsada_hpc.bench.step", "mmsada_hpc.bench.heads")


def python(code: str, others: tuple[str, ...] = OTHERS) -> "subprocess.CompletedProcess[str]":
    """Run where none of the others can be imported, the package is found in the checkout alone and no GPU is seen."""
    paths = {"PYTHONPATH": f"{CHECKOUT}:{CHECKOUT / '.mypy'}", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.modules.update(dict.fromkeys({others!r}))\n{code}"],
        cwd=CHECKOUT,
        env=os.environ | paths | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_kernels_and_model_need_nothing_beside_torch_and_triton() -> None:
    done = python(f"import {', '.join(MODULES)}\nprint(mmsada_kernels.__file__)", (*OTHERS, "numpy"))
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(CHECKOUT)


def test_benchmarks_of_the_step_and_the_heads_need_numpy_beside_them() -> None:
    done = python(f"import {', '.join(BENCHMARKS)}")
    assert done.returncode == 0, done.stderr


def test_tests_for_a_gpu_are_found_and_say_why_they_are_skipped() -> None:
    done = python("import pytest; sys.exit(pytest.main(['tests/gpu', '-q', '-p', 'no:cacheprovider']))")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "no CUDA device" in done.stdout and "passed" not in done.stdout
    for told in ("nvidia.dali is not installed: DALI on a GPU", "is not installed: no engine was tried on a GPU"):
        assert told in done.stdout
