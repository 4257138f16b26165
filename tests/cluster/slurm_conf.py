"""The cluster's slurm.conf: short times, so that what takes minutes on a real cluster takes seconds here."""

import os
import time
from dataclasses import dataclass

from tests.cluster.names import Names
from tests.cluster.network import address

GRACE_S = 20
"""Between the warning (SIGTERM) of a preemption and the kill."""


@dataclass(frozen=True)
class Size:
    """How large the cluster is; `cpus` of each node are claimed, whatever the machine has."""

    nodes: int = 2
    cpus: int = 8


def slurm_conf(names: Names, size: Size, subnet: str) -> str:
    state = names.state
    memory_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    nodes = [
        f"NodeName={host} NodeAddr={address(names, host, subnet)} CPUs={size.cpus} RealMemory={memory_mb} State=UNKNOWN"
        for host in names.nodes(size.nodes)
    ]
    lines = f"""
ClusterName=mm{names.hash}
SlurmctldHost={names.controller}({address(names, names.controller, subnet)})
SlurmUser=root
StateSaveLocation={state}/controller
SlurmctldPidFile={state}/slurmctld.pid
SlurmctldLogFile={state}/log/slurmctld.log
SlurmdSpoolDir={state}/spool/%n
SlurmdPidFile={state}/slurmd-%n.pid
SlurmdLogFile={state}/log/slurmd-%n.log
AuthType=auth/munge
AuthInfo=socket={state}/munge/socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=pmi2
PropagateResourceLimits=NONE
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/none

FirstJobId={1 + int(time.time()) % 10_000_000}
JobRequeue=1
JobFileAppend=1
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2
SlurmdTimeout=30
KillWait=5
OverTimeLimit=0
MinJobAge=300
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
""".strip().splitlines()
    partition = "Nodes=ALL MaxTime=INFINITE DefaultTime=10 State=UP"
    return "\n".join(
        [
            *lines,
            "",
            *nodes,
            f"PartitionName=low Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={GRACE_S} {partition}",
            f"PartitionName=high Default=NO PriorityTier=10 PreemptMode=OFF {partition}",
            "",
        ]
    )


CGROUP_CONF = "CgroupPlugin=cgroup/v1\n"
"""No plug-in that is chosen above uses it, but 22.05 loads one, and fails where it guesses."""
