"""One conv3d, forward and backward, in each precision: how fast, and whether the results agree (D25)."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmsada_hpc.doctor.report import Ask, Line

if TYPE_CHECKING:
    from torch import Tensor

_REPEATS = 5
# bf16 keeps 8 bits, TF32 11; a wrong kernel is off by the size of the result.
_TOLERANCE = {"bf16": 0.03, "TF32": 0.01}
_CPU_FLAGS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 bf16"}


@dataclass(frozen=True)
class Timed:
    """Milliseconds of the fastest of five, and how far the output is from fp32's, relative to its size."""

    ms: float
    error: float


def check(ask: Ask) -> list[Line]:
    """One line, for the GPU where there is one."""
    import torch

    on_gpu = torch.cuda.is_available()
    where = f"on {torch.cuda.get_device_name(0)}" if on_gpu else f"on the CPU ({cpu_features()})"
    return [judge(measure("cuda" if on_gpu else "cpu"), where, on_gpu=on_gpu)]


def judge(timed: dict[str, Timed], where: str, *, on_gpu: bool) -> Line:
    """The line about what was measured."""
    shown = ", ".join(f"{name} {{{name}_ms:.3g}} ms" for name in timed)
    seen: dict[str, float | str] = {f"{name}_ms": one.ms for name, one in timed.items()}
    what = f"{shown}, {where}"
    wrong = [name for name, limit in _TOLERANCE.items() if name in timed and not timed[name].error < limit]
    if wrong:
        errors = ", ".join(f"{name} is off by {timed[name].error:.0%}" for name in wrong)
        remedy = "wrong results: install torch 2.10 with cuDNN 9.15 or later; until then train.precision=fp32"
        return Line("conv3d", "fail", f"{what}: {errors}", remedy, seen)
    if timed["bf16"].ms > timed["fp32"].ms:
        slow = "bf16 is slower than fp32"
        remedy = (
            "set train.precision=fp32, and see the versions above: a bf16 conv3d that goes round cuDNN is this slow"
            if on_gpu
            else "set train.precision=fp32: without AVX-512 bf16 or AMX a CPU computes bf16 in steps"
        )
        return Line("conv3d", "warn", f"{what}: {slow}", remedy, seen)
    return Line("conv3d", "ok", what, seen=seen)


def measure(device: str) -> dict[str, Timed]:
    """fp32, TF32 (on a GPU) and bf16 under autocast, as a run of that precision computes it."""
    import torch

    before = torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = False
        exact, ms = _conv(device)
        timed = {"fp32": Timed(ms, 0.0)}
        if device == "cuda":
            torch.backends.cudnn.allow_tf32 = True
            timed["TF32"] = _timed(_conv(device), exact)
        timed["bf16"] = _timed(_conv(device, bf16=True), exact)
    finally:
        torch.backends.cudnn.allow_tf32 = before
    return timed


def _timed(result: "tuple[Tensor, float]", exact: "Tensor") -> Timed:
    out, ms = result
    return Timed(ms, float((out - exact).norm() / exact.norm()))


def _conv(device: str, *, bf16: bool = False) -> "tuple[Tensor, float]":
    """I3D's second convolution on a smaller input: (N,C,T,H,W) in fp32, and milliseconds forward and backward."""
    import torch

    clips, frames, side = (8, 16, 56) if device == "cuda" else (1, 4, 28)
    rng = torch.Generator().manual_seed(0)
    input_NCTHW = torch.randn(clips, 64, frames, side, side, generator=rng).to(device)
    conv = torch.nn.Conv3d(64, 192, 3, padding=1, bias=False).to(device)
    with torch.no_grad():
        conv.weight.copy_(torch.randn(conv.weight.shape, generator=rng) / 1728**0.5)
    input_NCTHW = input_NCTHW.to(memory_format=torch.channels_last_3d).requires_grad_()
    times = []
    for _ in range(_REPEATS + 1):  # the first one chooses kernels
        begin = _now(device)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
            out_NCTHW = conv(input_NCTHW)
        out_NCTHW.float().square().mean().backward()
        times.append(_now(device) - begin)
    return out_NCTHW.detach().float(), 1000 * min(times[1:])


def _now(device: str) -> float:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What the CPU has for bf16."""
    words = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    found = [name for flag, name in _CPU_FLAGS.items() if flag in words]
    if "bf16" in words and not found:  # ARM's name
        found = ["bf16"]
    return " and ".join(found) or "no bf16 instructions"
