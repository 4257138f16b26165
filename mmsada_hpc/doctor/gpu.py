"""GPUs: what is plugged in against what torch can use."""

import re
from collections import Counter
from pathlib import Path

from mmsada_hpc.cluster.local import visible_gpus
from mmsada_hpc.doctor.report import Ask, Line

_DRIVER = Path("/proc/driver/nvidia/version")


def check(ask: Ask) -> list[Line]:
    """One line."""
    import torch

    plugged = visible_gpus()
    if torch.version.cuda is None:
        if not plugged:
            return [Line("gpu", "ok", "none: everything runs on the CPU")]
        return [
            Line(
                "gpu",
                "warn",
                f"{_count(len(plugged))} here that torch {torch.__version__}, a CPU build, cannot use",
                "install a CUDA build of torch and the extra cuda13 (or cuda12)",
            )
        ]
    if not torch.cuda.is_available():
        return [_unusable(len(plugged), torch.version.cuda)]
    return [_usable()]


def _unusable(plugged: int, cuda: str) -> Line:
    if plugged:
        what = f"{_count(plugged)} and driver {driver() or 'unknown'}, but torch for CUDA {cuda} cannot use them"
        return Line("gpu", "fail", what, f"a driver made for CUDA {cuda} or later, or a torch for an older CUDA")
    what = f"none in sight, though torch is built for CUDA {cuda}"
    return Line("gpu", "warn", what, "on a login node that is right; in a job, ask for GPUs (gpus_per_node)")


def _usable() -> Line:
    import torch

    count = torch.cuda.device_count()
    places = [torch.cuda.get_device_capability(i) for i in range(count)]
    names = Counter(f"{torch.cuda.get_device_name(i)} (sm_{places[i][0]}{places[i][1]})" for i in range(count))
    built_for = torch.cuda.get_arch_list()
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else "missing"
    text = f"{', '.join(f'{n} x {name}' for name, n in names.items())}, driver {driver() or 'unknown'}, NCCL {nccl}"
    if not any(_can_run(arch, place) for arch in built_for for place in places):
        return Line("gpu", "fail", f"{text}; torch is built for {' '.join(built_for)} only", "install another torch")
    if nccl == "missing":
        return Line("gpu", "warn", text, "several GPUs need NCCL: install torch's own CUDA wheel")
    for i in range(count):
        _sum_on(i)
    return Line("gpu", "ok", text)


def _can_run(arch: str, place: tuple[int, int]) -> bool:
    """Machine code runs on its own major version from its minor on; PTX (compute_) on everything later."""
    match = re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", arch)
    if match is None:
        return False
    made_for = int(match[2]), int(match[3])
    return made_for <= place and (match[1] == "compute" or made_for[0] == place[0])


def _sum_on(index: int) -> None:
    """A GPU that is in another's exclusive use, or broken, raises here."""
    import torch

    total = torch.ones(1024, device=f"cuda:{index}").sum().item()
    if total != 1024:
        raise RuntimeError(f"GPU {index} sums 1024 ones to {total}")


def driver() -> str | None:
    """Version of NVIDIA's kernel module."""
    if not _DRIVER.exists():
        return None
    match = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", _DRIVER.read_text())
    return match[1] if match else None


def _count(number: int) -> str:
    return f"{number} GPU{'' if number == 1 else 's'}"
