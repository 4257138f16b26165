"""A job on this host: real processes, real gloo, real signals."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mmsada_hpc.cluster.local import visible_gpus

JOB = """
import os, sys, time
from pathlib import Path
from mmsada_hpc.cluster import local
from mmsada_hpc.cluster.profile import load_profile
from mmsada_hpc.errors import UserError

def sum_over_ranks():
    from datetime import timedelta
    import torch
    import torch.distributed as dist
    from mmsada_hpc.cluster.join import join, leave
    from mmsada_hpc.cluster.world import find_world
    world = join(find_world(), timeout=timedelta(seconds=60))
    number = torch.tensor([world.rank + 1.0])
    dist.all_reduce(number)
    print(f"{world.launcher} rank {world.rank} sum={number.item():.0f}", flush=True)
    leave()
    return world.size

def wait_for_ever():
    print("waiting", os.getpid(), flush=True)
    deadline = time.time() + 60
    while time.time() < deadline:
        time.sleep(60)  # as deaf as a rank inside a collective: submitit bypasses SIGTERM

def save_when_told():
    from mmsada_hpc.train.stop import StopFlag
    with StopFlag().listening() as stop:
        print("waiting", os.getpid(), flush=True)
        while not any(stop.flags()):
            time.sleep(0.02)
    print("saved", flush=True)

def fail(how):
    if os.environ["SUBMITIT_LOCAL_GLOBALID"] == "0":
        return wait_for_ever()
    if how == "killed":
        os.kill(os.getpid(), 9)
    raise UserError("data.store: no such folder") if how == "user" else KeyError("a bug")

def main(name, folder):
    local._GRACE_S = 0.5
    local._SAVE_S = 0.5 if name == "deaf" else 30
    jobs = {"sum": sum_over_ranks, "deaf": wait_for_ever, "save": save_when_told}
    job = jobs.get(name) or (lambda: fail(name))
    try:
        print("returned", local.run_local(job, load_profile("local", {"tasks_per_node": 2}), folder=Path(folder),
                                          screen=sys.stdout))
    except (UserError, local.JobFailedError, KeyboardInterrupt) as error:
        print(f"{type(error).__name__}: {error}")

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    script = tmp_path / "job.py"
    script.write_text(JOB)
    return [sys.executable, str(script)]


def start(command: list[str], name: str, folder: Path) -> "subprocess.Popen[str]":
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    arguments = [*command, name, str(folder)]
    return subprocess.Popen(arguments, env=environ, stdout=subprocess.PIPE, text=True, start_new_session=True)


def test_two_ranks_reduce_and_the_screen_shows_rank_0_alone(command: list[str], tmp_path: Path) -> None:
    out, _ = start(command, "sum", tmp_path / "logs").communicate(timeout=90)
    assert out == "submitit rank 0 sum=3\nreturned 2\n"


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("user", "UserError: data.store: no such folder\n"),
        ("bug", "JobFailedError: rank 1 failed; all of it is in "),
        ("killed", "JobFailedError: rank 1 ended without a result (killed, out of memory?); see "),
    ],
)
def test_a_rank_that_fails_ends_the_job_and_says_why(command: list[str], tmp_path: Path, how: str, told: str) -> None:
    out, _ = start(command, how, tmp_path / "logs").communicate(timeout=60)
    assert told in out
    if psutil.pid_exists(rank_0 := int(out.split()[1])):
        assert is_gone(psutil.Process(rank_0))


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", ["save", "deaf"])
def test_ctrl_c_and_sigterm_let_the_ranks_save_and_leave_none_behind(
    command: list[str], tmp_path: Path, name: str, signal_number: signal.Signals
) -> None:
    process = start(command, name, tmp_path / "logs")
    assert process.stdout is not None and process.stdout.readline().startswith("waiting")
    ranks = psutil.Process(process.pid).children(recursive=True)
    assert len(ranks) == 3  # submitit's controller and two ranks
    if signal_number is signal.SIGINT:
        os.killpg(process.pid, signal_number)  # as a terminal does
    else:
        process.send_signal(signal_number)
    out, _ = process.communicate(timeout=30)
    told, *saved, last = out.splitlines()
    assert told.startswith("stopping:") and last == "KeyboardInterrupt: "
    assert saved == (["saved"] if name == "save" else [])
    assert all(is_gone(rank) for rank in ranks)


def is_gone(process: psutil.Process) -> bool:
    """Within five seconds, which is what it may take init to collect an orphan."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_gpus_are_counted_without_torch(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "null"):
        (tmp_path / name).touch()
    assert visible_gpus({}, devices=tmp_path) == [0, 1]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "3"}, devices=tmp_path) == [3]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}, devices=tmp_path) == []
