"""What `scontrol` prints, as sentences about a run that is in the way."""

import pytest

from mmsada_hpc.doctor.report import Line
from mmsada_hpc.doctor.slurm import judge, parse_config, parse_partitions, room_to_save, seconds

# In the format of Slurm 22.05.
CONFIG = """Configuration data as of 2026-11-25T13:30:52
AuthInfo                = socket=/run/munge/socket,cred_expire=5
ClusterName             = rosa
JobRequeue              = 1
KillWait                = 30 sec
PreemptMode             = REQUEUE
PreemptParameters       = (null)
PreemptType             = preempt/partition_prio
SLURM_VERSION           = 22.05.8

Cgroup Support Configuration:
CgroupMountpoint        = /sys/fs/cgroup
"""
PARTITIONS = """\
PartitionName=low AllowGroups=ALL Default=YES QoS=N/A GraceTime=20 Nodes=n[1-2] PriorityTier=1 PreemptMode=REQUEUE
PartitionName=hurried AllowGroups=ALL Default=NO QoS=N/A GraceTime=0 Nodes=n[1-2] PriorityTier=2 PreemptMode=CANCEL
PartitionName=still AllowGroups=ALL Default=NO QoS=N/A GraceTime=0 Nodes=n1 PriorityTier=2 PreemptMode=GANG,SUSPEND
PartitionName=safe AllowGroups=ALL Default=NO QoS=N/A GraceTime=0 Nodes=n1 PriorityTier=2 PreemptMode=OFF
PartitionName=high AllowGroups=ALL Default=NO QoS=N/A GraceTime=0 Nodes=n[1-2] PriorityTier=10 PreemptMode=REQUEUE
"""


def lines(partition: str | None = None, **config: str) -> dict[str, Line]:
    found = judge(parse_config(CONFIG) | config, parse_partitions(PARTITIONS), partition)
    return {line.name: line for line in found}


def test_the_default_partition_is_the_one_told_about() -> None:
    assert list(lines()) == ["slurm", "requeue", "partition low"]
    assert lines()["slurm"].text == "22.05.8, cluster rosa"


@pytest.mark.parametrize(
    ("partition", "level", "text"),
    [
        ("low", "ok", "PreemptMode=REQUEUE: SIGTERM, 20 s to save, then SIGKILL"),
        ("hurried", "warn", "PreemptMode=CANCEL: no grace: SIGTERM, 30 s (KillWait) to save, then SIGKILL"),
        ("still", "warn", "PreemptMode=SUSPEND: a job in the way is stopped where it is and keeps its memory"),
        ("safe", "ok", "jobs are not preempted (preempt/partition_prio, PreemptMode=OFF)"),
        ("high", "ok", "no partition is above it, so its jobs are not preempted"),
    ],
)
def test_each_preempt_mode_is_judged(partition: str, level: str, text: str) -> None:
    line = lines(partition)[f"partition {partition}"]
    assert (line.level, line.text) == (level, text)
    assert bool(line.remedy) == (level != "ok")


def test_a_user_signal_is_told() -> None:
    line = lines(PreemptParameters="send_user_signal")["partition low"]
    assert line.text == "PreemptMode=REQUEUE: USR2, 20 s to save, then SIGKILL"


def test_without_preemption_nothing_is_asked() -> None:
    line = lines("hurried", PreemptType="preempt/none")["partition hurried"]
    assert (line.level, line.text) == ("ok", "jobs are not preempted (preempt/none, PreemptMode=CANCEL)")


def test_a_cluster_that_requeues_nobody_is_warned_about() -> None:
    line = lines(JobRequeue="0")["requeue"]
    assert line.level == "warn"
    assert "sbatch: {requeue: true}" in line.remedy


def test_a_partition_that_does_not_exist_fails_with_those_that_do() -> None:
    (line,) = lines("gpu").values()
    assert line.level == "fail"
    assert "no partition gpu" in line.text
    assert "low, hurried, still, safe, high" in line.remedy


@pytest.mark.parametrize(
    ("mb_per_s", "level"), [(500.0, "ok"), (25.0, "warn"), (10.0, "fail")], ids=["fast", "close", "slow"]
)
def test_a_checkpoint_must_fit_into_the_warning(mb_per_s: float, level: str) -> None:
    folder = Line("folder", "ok", "{MB_per_s:.0f}", seen={"MB_per_s": mb_per_s})
    (line,) = room_to_save([folder, *lines().values()], checkpoint_mb=300)
    assert line.level == level
    assert f"{300 / mb_per_s:.1f} s here; preemption leaves 20 s" in line.text


def test_nothing_is_said_about_time_where_nobody_is_preempted() -> None:
    folder = Line("folder", "ok", "", seen={"MB_per_s": 1.0})
    assert room_to_save([folder, *lines("safe").values()], checkpoint_mb=300) == []


def test_slurms_times_are_read() -> None:
    assert [seconds(t) for t in ("20", "30 sec", "00:02:05", "1-00:00:00", "(null)")] == [20, 30, 125, 86400, 0]
