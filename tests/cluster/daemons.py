"""The hosts' namespaces beyond the network (host name, mounts), and the daemons in them."""

import os
import secrets
import shlex
from collections.abc import Sequence
from pathlib import Path

from tests.cluster import network
from tests.cluster.names import Names
from tests.cluster.processes import ClusterError, command_name, end_processes, run, start, wait_until

_SET_UP_S = 10.0
_PRIVATE_DISK = "size=256m"


def start_host(names: Names, host: str) -> int:
    """A process that holds the host's namespaces: network, host name, mounts (own /etc/hosts, own private folder).

    Its id is what `inside` needs. The machine's own /etc/hosts is left alone: names are for the hosts only, clients
    find the addresses in slurm.conf.
    """
    script = "; ".join(
        [
            "set -e",
            f"hostname {host}",
            f"mount --bind {shlex.quote(str(names.state / 'hosts'))} /etc/hosts",
            f"mount -t tmpfs -o {_PRIVATE_DISK} {host} {shlex.quote(str(names.private_folder))}",
            "exec sleep infinity",
        ]
    )
    # Mounts made later in the root namespace come through ("slave"), those made here stay here.
    unshare = ["unshare", "--uts", "--mount", "--propagation", "slave", "sh", "-c", script]
    log = names.state / "log" / f"{host}.log"
    pid = start(["ip", "netns", "exec", host, *unshare], log=log)
    try:
        wait_until(lambda: command_name(pid) == "sleep", timeout=_SET_UP_S, what=f"namespaces of {host}", every=0.01)
    except ClusterError as error:
        raise ClusterError(f"{error}\n{log.read_text()}") from None
    return pid


def inside(holder: int, command: Sequence[str | Path]) -> list[str]:
    """The command as run in the namespaces of the host whose `start_host` gave `holder`."""
    return ["nsenter", f"--target={holder}", "--net", "--uts", "--mount", "--wd=/", "--", *map(str, command)]


def start_munged(names: Names, holder: int) -> None:
    """A munge of the cluster's own: own key and socket, so the system's is neither needed nor disturbed."""
    folder = names.state / "munge"
    folder.mkdir(mode=0o755)
    key = folder / "key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    command = ["munged", "--foreground", "--force", f"--socket={folder}/socket", f"--key-file={key}"]
    command += [f"--pid-file={folder}/pid", f"--seed-file={folder}/seed", f"--log-file={names.state}/log/munged.log"]
    start(inside(holder, command), log=names.state / "log" / "munged.out")
    wait_until((folder / "socket").exists, timeout=_SET_UP_S, what="munged's socket", every=0.01)


def start_slurmctld(names: Names, holder: int) -> None:
    command = ["slurmctld", "-D", "-f", str(names.slurm_conf)]
    start(inside(holder, command), log=names.state / "log" / "slurmctld.out")


def start_slurmd(names: Names, host: str, holder: int) -> None:
    # Jobs inherit the limit: those that tests make crash leave no core files in the checkout.
    command = ["prlimit", "--core=0", "--", "slurmd", "-D", "-N", host, "-f", str(names.slurm_conf)]
    start(inside(holder, command), log=names.state / "log" / f"slurmd-{host}.out")


def kill_slurmd(host: str) -> None:
    """SIGKILL to the node's slurmd; its jobs' processes stay."""
    end_processes(
        lambda: [pid for pid in network.pids(host) if command_name(pid) == "slurmd"], what=f"slurmd of {host}"
    )


def make_disks(names: Names) -> None:
    """A folder whose mounts reach the hosts that are started later, also where the root is mounted private."""
    names.disks.mkdir()
    run(["mount", "--bind", names.disks, names.disks])
    run(["mount", "--make-shared", names.disks])


def unmount_all(names: Names) -> None:
    """Unmount what is mounted below the state folder, the deepest first."""
    for folder in mounts(names):
        run(["umount", "--lazy", folder])


def mounts(names: Names) -> list[str]:
    """Mount points below the state folder in this mount namespace, the deepest first."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return sorted((point for point in points if point.startswith(f"{names.state}{os.sep}")), reverse=True)
