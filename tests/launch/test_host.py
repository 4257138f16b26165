"""Threads and memory of one host."""

import contextlib
import ctypes
import os
import subprocess
import sys
import time

import psutil
import pytest
import torch

from mmsada_hpc.cluster.host import affinity_warning, cores, num_threads, set_threads

COUNT_PAGE_FAULTS = """
import resource, torch
from mmsada_hpc.cluster.host import keep_freed_memory
applied = keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    before = faults()
    torch.ones(2**24)
print(applied, faults() - before)
"""


def test_ranks_of_a_host_share_its_cores() -> None:
    assert [num_threads(n, available=16) for n in (1, 2, 3, 32)] == [16, 8, 5, 1]


def test_what_slurm_gave_a_rank_is_not_shared_again() -> None:
    assert num_threads(4, cpus_per_task=12, available=12) == 12
    assert num_threads(4, cpus_per_task=12, available=2) == 2


def test_omp_num_threads_wins() -> None:
    before = torch.get_num_threads()
    try:
        assert set_threads(1, environ={}) == cores()
        torch.set_num_threads(1)
        assert set_threads(1, environ={"OMP_NUM_THREADS": "1"}) == 1
    finally:
        torch.set_num_threads(before)


def test_a_rank_bound_to_fewer_cores_than_slurm_gave_is_warned() -> None:
    assert affinity_warning(8, available=8) is None
    assert affinity_warning(None) is None
    assert "Slurm gave 8 cores to each task but this process may use 1" in str(affinity_warning(8, available=1))


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="the C library is not glibc")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = subprocess.run(
        [sys.executable, "-c", COUNT_PAGE_FAULTS], env=environ, capture_output=True, text=True, timeout=60, check=True
    )
    applied, faults = out.stdout.split()
    assert applied == "True"
    assert int(faults) < 100  # 64 MiB taken afresh are 16384 pages; the heap takes some ten rounds to settle


def test_the_last_resort_takes_the_children_along() -> None:
    program = (
        "import subprocess, sys; from mmsada_hpc.cluster.host import end_process;"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "print(child.pid); end_process(7)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert done.returncode == 7
    assert is_gone(int(done.stdout))


def is_gone(pid: int) -> bool:
    """Within five seconds, which is what it may take init to collect an orphan."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.05)
                continue
        return True
    return False
