"""The test cluster itself: what the tests on it rely on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import daemons, life, network
from tests.cluster.cluster import Cluster
from tests.cluster.names import CHECKOUT, NAME_VARIABLE, Names
from tests.cluster.processes import ClusterError, command_name, start_time, wait_until
from tests.cluster.slurm_conf import GRACE_S

GLOO = """
import os, torch, torch.distributed as dist
os.environ |= {"RANK": os.environ["SLURM_PROCID"], "WORLD_SIZE": os.environ["SLURM_NTASKS"]}
dist.init_process_group("gloo")
total = torch.full((3,), dist.get_rank() + 1.0)
dist.all_reduce(total)
dist.destroy_process_group()
print("host", os.uname().nodename, "sum", total.tolist(), flush=True)
"""


def script(folder: Path, text: str, *options: str) -> Path:
    path = folder / "job.sh"
    header = [f"#SBATCH {option}" for option in (f"--output={folder}/log", "--time=1", "--job-name=selftest", *options)]
    path.write_text("\n".join(["#!/bin/bash", *header, text, ""]))
    return path


def finish(cluster: Cluster, job: str) -> None:
    cluster.wait_for(job, {"COMPLETED"}, timeout=40)


def test_a_job_of_two_nodes_sees_two_host_names_and_two_addresses(cluster: Cluster, tmp_path: Path) -> None:
    line = "srun bash -c 'echo $(hostname) $(hostname -I)'"
    finish(cluster, cluster.sbatch(script(tmp_path, line, "--nodes=2", "--ntasks-per-node=1")))
    seen = sorted((tmp_path / "log").read_text().splitlines())
    assert seen == [f"{node} {cluster.address(node)}" for node in cluster.nodes[:2]]


def test_srun_from_the_checkout_gives_each_task_its_cpus(cluster: Cluster) -> None:
    words = ["srun", "--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=3", "printenv", "SLURM_CPUS_PER_TASK"]
    assert cluster.run(words).split() == ["3"] * 4


def test_gloo_reduces_across_the_nodes(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "reduce.py").write_text(GLOO)
    lines = [
        "export MASTER_ADDR=$(hostname) MASTER_PORT=29533 GLOO_SOCKET_IFNAME=eth0 OMP_NUM_THREADS=1",
        f"srun --cpus-per-task=1 {sys.executable} {tmp_path}/reduce.py",
    ]
    finish(cluster, cluster.sbatch(script(tmp_path, "\n".join(lines), "--nodes=2", "--ntasks-per-node=1")))
    seen = sorted(line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("host"))
    assert seen == [f"host {node} sum [3.0, 3.0, 3.0]" for node in cluster.nodes[:2]]


OBEDIENT = "scontrol requeue $SLURM_JOB_ID"
STUBBORN = "echo warned"


def preempt(cluster: Cluster, folder: Path, when_warned: str) -> tuple[float, str]:
    """Have a job of two nodes in `low` make room for one in `high` and end in a second run; gives the seconds from
    the submission in `high` until that job had ended, and what the low job printed.
    """
    (folder / "task.sh").write_text(f"trap '{when_warned}' TERM\necho ready\nwhile :; do sleep 0.1; done\n")
    text = f'echo start $SLURM_RESTART_COUNT; [ -n "$SLURM_RESTART_COUNT" ] || srun --ntasks=1 bash {folder}/task.sh'
    low = cluster.sbatch(script(folder, text, "--nodes=2", "--exclusive"))
    cluster.wait_for(low, {"RUNNING"})
    log = folder / "log"
    wait_until(lambda: log.exists() and "ready" in log.read_text(), timeout=10, what="the low job's task")
    began = time.monotonic()
    high = cluster.sbatch(
        "--partition=high", "--nodes=2", "--exclusive", "--job-name=selftest", "--output=/dev/null", "--wrap=true"
    )
    cluster.wait_for(high, {"COMPLETED"}, timeout=90)
    seconds = time.monotonic() - began
    cluster.wait_for(low, {"COMPLETED"}, timeout=60)
    assert cluster.show_job(low)["Restarts"] == "1"
    return seconds, log.read_text()


def test_a_job_of_the_high_partition_takes_the_place_of_a_low_one_which_asks_to_be_requeued(
    cluster: Cluster, tmp_path: Path
) -> None:
    seconds, log = preempt(cluster, tmp_path, OBEDIENT)
    assert seconds < GRACE_S
    assert log.splitlines()[0] == "start", "the log of the first run was overwritten"
    assert log.splitlines()[-1] == "start 1"


@pytest.mark.slow
def test_a_low_job_that_ignores_the_warning_is_killed_after_the_grace_time_and_requeued(
    cluster: Cluster, tmp_path: Path
) -> None:
    seconds, log = preempt(cluster, tmp_path, STUBBORN)
    assert GRACE_S - 1 < seconds < GRACE_S + 40, "slurmctld looks at time limits every 30 s"
    assert "warned" in log and "DUE TO PREEMPTION" in log
    assert log.splitlines()[-1] == "start 1"


def test_the_private_folder_is_each_nodes_own_and_a_small_disk_is_everyones(cluster: Cluster) -> None:
    first, second = cluster.nodes[:2]
    cluster.exec(first, ["touch", cluster.private_folder / "token"])
    assert cluster.exec(second, ["ls", cluster.private_folder]) == ""
    cluster.exec(first, ["rm", cluster.private_folder / "token"])
    with cluster.small_disk(1) as disk:
        cluster.exec(first, ["touch", disk / "token"])
        assert cluster.exec(second, ["ls", disk]) == "token\n"
        with pytest.raises(ClusterError, match="No space left"):
            cluster.exec(second, ["dd", "if=/dev/zero", f"of={disk}/big", "bs=64k", "count=100"])
    assert not disk.exists()


def test_a_node_that_is_cut_off_is_not_heard_until_it_is_reconnected(cluster: Cluster) -> None:
    first, second = cluster.nodes[:2]
    connect = [sys.executable, "-c", f"import socket; socket.create_connection(({cluster.address(second)!r}, 6818), 1)"]
    cluster.exec(first, connect)
    cluster.cut_off(second)
    try:
        with pytest.raises(ClusterError, match=r"timed out|No route"):
            cluster.exec(first, connect)
    finally:
        cluster.reconnect(second)
    cluster.exec(first, connect)


def test_a_killed_slurmd_leaves_its_jobs_and_comes_back(cluster: Cluster, tmp_path: Path) -> None:
    node = cluster.nodes[0]
    job = cluster.sbatch(script(tmp_path, "sleep 4; echo done", f"--nodelist={node}"))
    wait_until(lambda: "sleep" in map(command_name, cluster.pids(node)), timeout=20, what="the job's process")
    cluster.kill_slurmd(node)
    assert "sleep" in map(command_name, cluster.pids(node))
    assert "slurmd" not in map(command_name, cluster.pids(node))
    cluster.start_slurmd(node)
    finish(cluster, job)
    assert (tmp_path / "log").read_text() == "done\n"
    cluster.heal()


@pytest.fixture
def other(may_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    """Names of a second cluster, which is gone after the test."""
    monkeypatch.setenv(NAME_VARIABLE, str(tmp_path))
    names = Names.here()
    yield names
    life.down(names)


def command(word: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.cluster", word], cwd=CHECKOUT, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def left_of(names: Names) -> list[str]:
    """What there is of a cluster: namespaces, links, mounts, folder, lines of /etc/hosts, processes that name it."""
    found = network.namespaces(names) + network.links(names) + daemons.mounts(names)
    found += [str(names.state)] if names.state.exists() else []
    found += [line for line in Path("/etc/hosts").read_text().splitlines() if names.hash in line]
    for folder in Path("/proc").glob("[0-9]*"):
        words = folder.joinpath("cmdline")
        try:
            if names.hash.encode() in words.read_bytes():
                found.append(folder.name)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def test_a_second_cluster_beside_the_first_goes_without_a_trace_and_its_jobs_with_it(
    cluster: Cluster, other: Names, tmp_path: Path
) -> None:
    assert "brought up in" in command("up")
    assert "it was up already" in command("up")
    assert f"export SLURM_CONF={other.slurm_conf}\n" == command("env")
    second = Cluster.open(other)
    assert not {cluster.address(node) for node in cluster.nodes} & {second.address(node) for node in second.nodes}
    second.wait_for(second.sbatch(script(tmp_path, "setsid sleep 300 & sleep 300")), {"RUNNING"})
    sleepers = [pid for node in second.nodes for pid in second.pids(node) if command_name(pid) == "sleep"]
    wait_until(lambda: len(left_of(other)) > 10, timeout=5, what="signs of a cluster")
    command("down")
    assert left_of(other) == []
    assert not any(map(start_time, sleepers))
    assert "idle" in cluster.node_states().values(), "the first cluster goes on"


SESSION = "import time; from tests.cluster import life\nwith life.session(): print('up', flush=True); time.sleep(300)"


def test_a_killed_test_session_leaves_nothing(other: Names) -> None:
    session = subprocess.Popen([sys.executable, "-c", SESSION], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
    assert session.stdout is not None
    assert session.stdout.readline() == "up\n"
    session.send_signal(signal.SIGKILL)
    session.communicate(timeout=10)
    wait_until(lambda: not left_of(other), timeout=20, what="the guard's work")


def test_a_session_takes_down_what_it_brought_up_and_leaves_what_was_up(other: Names) -> None:
    with life.session(other), life.session(other):
        assert Cluster.open(other).node_states()
    assert left_of(other) == []
    life.up(names=other)
    with life.session(other):
        pass
    assert Cluster.open(other).node_states()


def test_up_after_a_crash_clears_what_was_left(other: Names) -> None:
    life.up(names=other)
    ((other.state) / "state.json").unlink()  # as if killed before it was written
    os.kill(next(pid for pid in network.pids(other.controller)), signal.SIGKILL)
    assert "left by a crash" in command("status")
    assert "brought up in" in command("up")
    life.down(other)
    assert left_of(other) == []
