"""Steps in a fresh process: their peak memory, and their time with the allocator as it comes or as training sets it."""

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mmsada_hpc.bench.device import use_device
from mmsada_hpc.bench.step_model import Form, Shape, make_step
from mmsada_hpc.cluster.host import keep_freed_memory
from mmsada_hpc.errors import UserError

_TIMEOUT_SECONDS = 900


@dataclass(frozen=True)
class Steps:
    """What some steps took."""

    seconds: list[float]
    """Of each, after one to warm up."""
    peak_mb: float
    """Of the process, or of the GPU."""


def run_steps(shape: Shape, form: Form, device: torch.device, *, count: int = 1, keeps_freed: bool = True) -> Steps:
    """`count` steps after one to warm up, with as many threads as this process has.

    Args:
        keeps_freed: whether freed memory stays with the process, as in training.

    Raises:
        UserError: they failed, or took too long.
    """
    told: dict[str, Any] = {"shape": asdict(shape), "form": asdict(form), "device": str(device)}
    told |= {"count": count, "keeps_freed": keeps_freed, "threads": torch.get_num_threads()}
    command = [sys.executable, "-m", "mmsada_hpc.bench.step_child", json.dumps(told)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"bench step: {form} {shape} took more than {_TIMEOUT_SECONDS} s") from error
    if done.returncode:
        why = (done.stderr.splitlines() or [f"exit status {done.returncode}; memory may be short"])[-1]
        raise UserError(f"bench step: {form} {shape} could not be run: {why}")
    return Steps(**json.loads(done.stdout.splitlines()[-1]))


def _child(words: str) -> None:
    told = json.loads(words)
    if told["keeps_freed"]:
        keep_freed_memory()
    torch.set_num_threads(told["threads"])
    device = torch.device(told["device"])
    use_device(device)
    step = make_step(Shape(**told["shape"]), Form(**told["form"]), device)
    step()
    seconds = []
    for _ in range(told["count"]):
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    print(json.dumps(asdict(Steps(seconds, _peak_mb(device)))))


def _peak_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status").read_text()  # not ru_maxrss, which begins at the parent's
    peak_kb = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(peak_kb) * 1024 / 1e6


if __name__ == "__main__":
    _child(sys.argv[1])
