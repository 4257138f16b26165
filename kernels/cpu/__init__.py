"""The compiled operators: importing this finds the library that this processor can run, and loads it.

`setup.py` builds one library per instruction set from the same sources. Without one that fits, everything is computed
by the plain PyTorch definitions, and the first use says why. In the environment, `MMSADA_KERNELS=reference` asks for
those definitions at any time; a level (`MMSADA_KERNELS=v3`), set before the process starts, for that library and no
other.
"""

import functools
import os
import platform
import warnings
from pathlib import Path

import torch

SWITCH = "MMSADA_KERNELS"
# What each level needs of the `flags` in /proc/cpuinfo, best first; "plain" is for processors other than x86.
NEEDS: dict[str, tuple[str, ...]] = {
    "v4": ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"),
    "v3": ("avx2", "fma", "f16c"),
    "plain": (),
}


def level() -> str:
    """The level in use, or "reference"."""
    return _LEVEL if is_loaded() else "reference"


def is_loaded() -> bool:
    """Whether `torch.ops.mmsada` has its CPU operators and they are to be used.

    Raises:
        ValueError: `MMSADA_KERNELS` names nothing there is.
    """
    if wants_reference():
        return False
    if not _LEVEL:
        _warn()
    return bool(_LEVEL)


def wants_reference() -> bool:
    """Whether `MMSADA_KERNELS=reference` asks for the plain definitions, on any device.

    Raises:
        ValueError: it names nothing there is.
    """
    wanted = os.environ.get(SWITCH, "")
    if wanted in ("", "reference", _LEVEL):
        return wanted == "reference"
    if wanted in NEEDS:
        raise ValueError(f"{SWITCH}={wanted}: {_WHY_NOT or f'{_LEVEL} is loaded already; set it before Python starts'}")
    raise ValueError(f"{SWITCH}={wanted}: expected reference, {', '.join(NEEDS)}, or nothing for the best there is")


@functools.cache
def _warn() -> None:
    warnings.warn(
        f"mmsada_kernels computes in plain PyTorch, which is slower: {_WHY_NOT}. `pip install --no-build-isolation` "
        f"with torch and a C++ compiler there builds the operators; {SWITCH}=reference is silent",
        stacklevel=4,
    )


def _load() -> tuple[str, str]:
    """The level that is loaded, or "" and why none is."""
    loaded = {Path(path).name for path in torch.ops.loaded_libraries}
    for name in NEEDS:
        if _file(name) in loaded:  # this module was imported before, or there is a second copy of it
            return name, ""
    wanted = os.environ.get(SWITCH, "")
    reasons = []
    for name in [wanted] if wanted in NEEDS else NEEDS:
        reason = _try(name)
        if reason is None:
            return name, ""
        reasons.append(reason)
    return "", "; ".join(reasons)


def _try(name: str) -> str | None:
    """Load a level; or why it cannot be."""
    path = Path(__file__).with_name(_file(name))
    missing = sorted(set(NEEDS[name]) - _processor_flags())
    if not path.is_file():
        return f"{path.name} was not built"
    if missing:
        return f"{path.name} needs a processor with {', '.join(missing)}"
    try:
        torch.ops.load_library(path)
    except OSError as error:  # built for another torch, as a rule
        return f"{path.name} does not load ({error})"
    return None


def _file(name: str) -> str:
    return f"_cpu_{name}.so"


def _processor_flags() -> set[str]:
    if platform.machine() not in ("x86_64", "AMD64"):
        return set()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


_LEVEL, _WHY_NOT = _load()
