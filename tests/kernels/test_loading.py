"""Which form of the kernels is used: the best library this processor runs, the one asked for, or the definition."""

import importlib
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmsada_kernels import adaptation_heads, cpu, reference
from tests.kernels.head_cases import Sizes, compute, make_case
from tests.methods.build import Shape
from tests.methods.build import make_case as make_method_case

CHECKOUT = Path(__file__).resolve().parents[2]
compiled = pytest.mark.skipif(cpu.level() == "reference", reason="the compiled operators are not built here")

COMPARE = """
import torch, warnings
from mmsada_kernels import adaptation_heads, cpu
from tests.kernels.head_cases import Sizes, compute, definition, distances, make_case
torch.set_num_threads(1)
for sizes in (Sizes(), Sizes(clips=13, widths=(70, 33, 5), hidden=19, classes=7), Sizes(clips=1, widths=(64,))):
    case = make_case(sizes)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        single = distances(compute(adaptation_heads, case.to(torch.float32)), definition(case))
        half = distances(compute(adaptation_heads, case.to(torch.float32), autocast=True), definition(case))
    assert max(single) < 3e-5 and max(half) < 0.05, (single, half)
    for warning in told:
        print("warning:", warning.message)
print("level:", cpu.level())
"""


def run(script: str, *, path: Path = CHECKOUT, **environ: str) -> "subprocess.CompletedProcess[str]":
    variables = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{path}:{CHECKOUT}", **environ}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, cwd=path, env=variables, capture_output=True, text=True, timeout=100)


@compiled
@pytest.mark.parametrize("level", [name for name in cpu.NEEDS if (CHECKOUT / f"kernels/cpu/_cpu_{name}.so").is_file()])
def test_every_level_that_was_built_computes_the_same(level: str) -> None:
    done = run(COMPARE, MMSADA_KERNELS=level)
    if "needs a processor with" in done.stderr:
        pytest.skip(f"this processor does not run {level}")
    assert done.stdout.splitlines() == [f"level: {level}"], done.stderr


def test_without_a_library_it_says_why_once_and_computes_by_the_definition(tmp_path: Path) -> None:
    shutil.copytree(CHECKOUT / "kernels", tmp_path / "mmsada_kernels", ignore=shutil.ignore_patterns("*.so"))
    done = run(COMPARE, path=tmp_path)
    assert done.returncode == 0, done.stderr
    warning, level = done.stdout.splitlines()
    assert warning.startswith(
        "warning: mmsada_kernels computes in plain PyTorch, which is slower: _cpu_v4.so was not built"
    )
    assert level == "level: reference"


@compiled
def test_a_library_of_another_torch_is_named_and_not_used(tmp_path: Path) -> None:
    shutil.copytree(CHECKOUT / "kernels", tmp_path / "mmsada_kernels", ignore=shutil.ignore_patterns("*.so"))
    for name in cpu.NEEDS:
        (tmp_path / f"mmsada_kernels/cpu/_cpu_{name}.so").write_bytes(b"\x7fELF of another torch")
    done = run(COMPARE, path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"_cpu_{cpu.level()}.so does not load" in done.stdout and "level: reference" in done.stdout


def test_the_switch_asks_for_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(Sizes()).to(torch.float32)
    monkeypatch.setenv("MMSADA_KERNELS", "reference")
    ours, theirs = compute(adaptation_heads, case), compute(reference.adaptation_heads, case)
    assert cpu.level() == "reference"
    assert all(a.equal(b) for a, b in zip(ours.gradients, theirs.gradients, strict=True))


def test_a_switch_that_means_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMSADA_KERNELS", "refrence")
    with pytest.raises(ValueError, match="MMSADA_KERNELS=refrence: expected reference, v4, v3, plain, or nothing"):
        compute(adaptation_heads, make_case(Sizes()).to(torch.float32))


@compiled
def test_importing_again_changes_nothing() -> None:
    case = make_case(Sizes()).to(torch.float32)
    before, level = compute(adaptation_heads, case), cpu.level()
    assert importlib.reload(cpu).level() == level
    torch.ops.load_library(CHECKOUT / f"kernels/cpu/_cpu_{level}.so")
    again = importlib.reload(importlib.import_module("mmsada_kernels.heads"))
    after = compute(again.adaptation_heads, case)
    assert all(a.equal(b) for a, b in zip(before.gradients, after.gradients, strict=True))


@compiled
def test_a_step_of_mmsada_is_the_same_in_both_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_method_case("mmsada", Shape(per_domain=8, width=48, num_classes=5, seed=3))
    method = case.method.float()
    batch = replace(case.batch, dropout_SND={s: x.float() for s, x in case.batch.dropout_SND.items()})

    def step() -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
        features = {s: x.detach().float().requires_grad_() for s, x in case.features.items()}
        terms = method.terms(features, batch, torch.tensor(0.4))
        total = torch.stack([term.loss for term in terms.values()]).sum()
        return {k: t.loss for k, t in terms.items()}, list(
            torch.autograd.grad(total, [*features.values(), *method.parameters()])
        )

    assert cpu.is_loaded()
    fused, fused_gradients = step()
    monkeypatch.setenv("MMSADA_KERNELS", "reference")
    plain, plain_gradients = step()
    assert fused.keys() == plain.keys()
    assert all("View" not in type(x.grad_fn).__name__ and "Unbind" in type(x.grad_fn).__name__ for x in fused.values())
    torch.testing.assert_close(list(fused.values()), list(plain.values()), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fused_gradients, plain_gradients, rtol=1e-4, atol=1e-5)
