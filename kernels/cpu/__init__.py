"""The compiled operators: finds the library this processor can run and loads it, once.

`setup.py` builds one library per instruction set from the same sources. Without one that fits, everything is computed
by the plain PyTorch definitions, and the first use says why. `MMSADA_KERNELS=reference` asks for those; a level
(`MMSADA_KERNELS=v3`) for that library and no other.
"""

import functools
import os
import platform
import warnings
from pathlib import Path

import torch

SWITCH = "MMSADA_KERNELS"
# What each level needs of the `flags` in /proc/cpuinfo, best first; "plain" is for processors other than x86.
NEEDS = {
    "v4": ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"),
    "v3": ("avx2", "fma", "f16c"),
    "plain": (),
}


def wants_reference() -> bool:
    """Whether `MMSADA_KERNELS=reference` asks for the plain definitions, on any device."""
    return os.environ.get(SWITCH) == "reference"


def is_loaded() -> bool:
    """Whether `torch.ops.mmsada` has its CPU operators and they are to be used; the first call loads them.

    Raises:
        ValueError: `MMSADA_KERNELS` names nothing there is.
    """
    return not wants_reference() and _load(os.environ.get(SWITCH, "")) is not None


def level() -> str:
    """The level in use, or "reference"."""
    return (_load(os.environ.get(SWITCH, "")) or "reference") if is_loaded() else "reference"


@functools.cache
def _load(wanted: str) -> str | None:
    if wanted and wanted not in NEEDS:
        raise ValueError(f"{SWITCH}={wanted}: expected reference, {', '.join(NEEDS)}, or nothing for the best there is")
    loaded = _loaded_level()
    if loaded is not None and wanted in ("", loaded):
        return loaded
    if loaded is not None:
        raise ValueError(f"{SWITCH}={wanted}: level {loaded} is loaded already; set it before the process starts")
    reasons = []
    for name in [wanted] if wanted else NEEDS:
        reason = _try(name)
        if reason is None:
            return name
        reasons.append(reason)
    warnings.warn(
        f"mmsada_kernels computes in plain PyTorch, which is slower: {'; '.join(reasons)}. "
        f"`pip install --no-build-isolation` with a C++ compiler builds the operators; {SWITCH}=reference is silent",
        stacklevel=4,
    )
    return None


def _try(name: str) -> str | None:
    """Load a level; or why it could not be."""
    path = Path(__file__).with_name(f"_cpu_{name}.so")
    missing = [flag for flag in NEEDS[name] if flag not in _processor_flags()]
    if not path.is_file():
        return f"{path.name} was not built"
    if missing:
        return f"{path.name} needs a processor with {', '.join(missing)}"
    try:
        torch.ops.load_library(path)
    except OSError as error:  # of another torch, as a rule
        return f"{path.name} does not load ({error})"
    return None


def _loaded_level() -> str | None:
    """The level this process has, also where this module was imported anew or from a second copy."""
    try:
        return next(name for name in NEEDS if f"_cpu_{name}.so" in {Path(p).name for p in torch.ops.loaded_libraries})
    except StopIteration:
        return None


@functools.cache
def _processor_flags() -> frozenset[str]:
    if platform.machine() not in ("x86_64", "AMD64"):
        return frozenset()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())
