"""The device of `bench step` and `bench heads`, and this process set for it as training sets its own."""

import time
from collections.abc import Callable
from typing import Any

import torch

from mmsada_hpc.cluster.host import keep_freed_memory, set_gpu, set_threads
from mmsada_hpc.cluster.world import World
from mmsada_hpc.errors import UserError


def bench_device(text: str) -> torch.device:
    """What `--device` asks for; without words this rank's GPU where there is one, else the CPU.

    Raises:
        UserError: it is no device, of another kind, or not here.
    """
    try:
        asked = torch.device(text or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise UserError(f"--device {text}: no device; use cpu or cuda") from error
    if asked.type == "cpu":
        return torch.device("cpu")
    if asked.type != "cuda":
        raise UserError(f"--device {text}: use cpu or cuda")
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not here:
        raise UserError(f"--device {text}: torch {torch.__version__} sees no GPU here; use cpu")
    index = torch.cuda.current_device() if asked.index is None else asked.index
    if index >= here:
        raise UserError(f"--device {text}: torch sees {here} GPU{'s' * (here > 1)}, the last is cuda:{here - 1}")
    return torch.device("cuda", index)


def set_as_training(device: torch.device, world: World) -> None:
    """Memory, this rank's share of the cores, and the GPU."""
    keep_freed_memory()
    set_threads(world.local_size, cpus_per_task=world.cpus_per_task)
    use_device(device)


def use_device(device: torch.device) -> None:
    """Before anything is put on a GPU, which is set as the defaults of `train.tf32` and `train.cudnn_benchmark` say."""
    if device.type == "cuda":
        set_gpu(device, tf32=False, cudnn_benchmark=True)


def timer(action: Callable[[], object], device: torch.device) -> Callable[[], float]:
    """Seconds of one call of `action`, until the device is done with it."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def seconds() -> float:
        wait()
        begin = time.perf_counter()
        action()
        wait()
        return time.perf_counter() - begin

    return seconds


def settings(device: torch.device) -> dict[str, Any]:
    """How this process is set, for the details of a row."""
    found: dict[str, Any] = {"threads": torch.get_num_threads()}
    if device.type == "cuda":
        found["tf32"] = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
        found["cudnn_benchmark"] = torch.backends.cudnn.benchmark
    return found
