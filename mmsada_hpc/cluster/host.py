"""This host: how memory is kept, how many cores a rank has and how many threads it takes, how its GPU computes."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory instead of returning it to the kernel.

    Activations are freed and taken anew at every step; by default each of them is mapped and zeroed again, which took
    a third of the time of a training step on a CPU (I3D, batch 4: 2.25 -> 3.55 clips/s).

    Returns:
        Whether it applied; False on a C library other than glibc.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    return bool(libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_INT) and libc.mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT))


def end_process(code: int) -> NoReturn:
    """End this process at once and the children it started (decoders' readers), which would live on without it (D34).

    The last resort: nothing is cleaned up, as what a library does at exit may wait for other ranks.
    """
    import psutil  # the one thing here that a benchmark on a bare GPU image lacks

    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):  # gone by itself
                child.kill()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a full disk must not keep it alive
            stream.flush()
    os._exit(code)


def cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0))


def num_threads(local_size: int, *, cpus_per_task: int | None = None, available: int | None = None) -> int:
    """Threads for one of `local_size` ranks on this host, at least 1.

    Args:
        local_size: ranks on this host.
        cpus_per_task: what Slurm gave each rank; its ranks are usually bound, so that `cores()` is already the share.
        available: cores in sight; None = ask.
    """
    seen = cores() if available is None else available
    if cpus_per_task is not None:
        return max(1, min(cpus_per_task, seen))
    return max(1, seen // local_size)


def set_threads(local_size: int, *, cpus_per_task: int | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Give torch this rank's share of the cores; OMP_NUM_THREADS, where set, wins. Returns torch's threads."""
    import torch

    if "OMP_NUM_THREADS" not in (os.environ if environ is None else environ):
        torch.set_num_threads(num_threads(local_size, cpus_per_task=cpus_per_task))
    return torch.get_num_threads()


def set_gpu(device: "torch.device", *, tf32: bool, cudnn_benchmark: bool) -> None:
    """Make a GPU this process's own and say how it computes. The backends' own defaults are not relied on: torch lets
    convolutions of fp32 use TF32 unless it is told not to. Not run on a GPU yet.
    """
    import torch

    torch.cuda.set_device(device)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = cudnn_benchmark


def affinity_warning(cpus_per_task: int | None, *, available: int | None = None) -> str | None:
    """One line when Slurm promised more cores than the process may use, else None."""
    seen = cores() if available is None else available
    if cpus_per_task is None or seen >= cpus_per_task:
        return None
    return (
        f"Slurm gave {cpus_per_task} cores to each task but this process may use {seen}: srun did not get"
        " --cpus-per-task; decoding will starve (export SRUN_CPUS_PER_TASK, `mmsada submit` does)"
    )
