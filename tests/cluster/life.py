"""Bringing the cluster up and down, also after a crash, and sharing it between test sessions."""

import contextlib
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.cluster import daemons, network
from tests.cluster.cluster import Cluster
from tests.cluster.names import CHECKOUT, MAX_NODES, Names
from tests.cluster.processes import ClusterError, command_name, kill, run, start, start_time
from tests.cluster.slurm_conf import CGROUP_CONF, Size, slurm_conf

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "tc", "nsenter", "unshare", "prlimit")
PACKAGES = "slurm-wlm munge iproute2"


def obstacle() -> str:
    """Why no cluster can be brought up here, and what to do; empty when one can."""
    if os.geteuid() != 0:
        return "the test cluster needs root (network namespaces)"
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"{missing[0]} not found: apt-get install {PACKAGES} (make test does, where MMSADA_TEST_CLUSTER=1)"
    try:
        run(["unshare", "--net", "--uts", "--mount", "true"])
    except ClusterError as error:
        return f"namespaces are not permitted here: {' '.join(str(error).split())}"
    return ""


def up(size: Size | None = None, *, names: Names | None = None, kept: bool = True) -> tuple[Cluster, bool]:
    """The cluster, and whether it had to be brought up (False: it was up already).

    Args:
        size: None takes what is up, or the usual one.
        kept: it stays up until `down`; otherwise until the last test session ends.

    Raises:
        ClusterError: it cannot be brought up, or is up in another size.
    """
    names = names or Names.here()
    with _lock():
        return _up(names, size, kept)


def down(names: Names | None = None) -> None:
    """Leave nothing of the cluster; fine when there is none, or half of one.

    Raises:
        ClusterError: something could not be ended or removed; says what.
    """
    with _lock():
        _clear(names or Names.here())


@contextlib.contextmanager
def session(names: Names | None = None) -> Iterator[Cluster]:
    """The cluster for a test session: brought up unless it is up, taken down after its last session unless kept.

    A session that is killed is seen by the guard process, which then takes the cluster down.
    """
    names = names or Names.here()
    with _lock():
        cluster, _ = _up(names, None, kept=False)
        users = os.open(names.users, os.O_RDONLY)
        fcntl.flock(users, fcntl.LOCK_SH)
        _start_guard(names)
    try:
        yield cluster
    finally:
        os.close(users)
        with _lock():
            _clear_if_unused(names)


def guard(names: Names) -> None:
    """Wait for the end of all test sessions, however they end, then take the cluster down unless it is kept."""
    users = os.open(names.users, os.O_RDONLY)
    while os.fstat(users).st_nlink:
        fcntl.flock(users, fcntl.LOCK_EX)
        fcntl.flock(users, fcntl.LOCK_UN)  # for a session that takes it while holding the other lock
        with _lock():
            if not os.fstat(users).st_nlink or _record(names).get("kept") or _clear_if_unused(names):
                return


def status(names: Names | None = None) -> str:
    """What is up, for people."""
    names = names or Names.here()
    if not _is_up(names):
        left = network.namespaces(names) + network.links(names) + daemons.mounts(names)
        return "down" + (f", but left by a crash: {', '.join(left)} (python -m tests.cluster down)" if left else "")
    cluster = Cluster.open(names)
    lines = [f"up: {cluster.size_nodes} nodes of {cluster.cpus} CPUs; export SLURM_CONF={names.slurm_conf}"]
    states = cluster.node_states()
    lines += [f"  {node}  {cluster.address(node)}  {states.get(node, 'unknown')}" for node in cluster.nodes]
    return "\n".join([*lines, cluster.run(["squeue"]).rstrip()])


def _up(names: Names, size: Size | None, kept: bool) -> tuple[Cluster, bool]:
    if _is_up(names):
        cluster = Cluster.open(names)
        if size is not None and size != (now := Size(cluster.size_nodes, cluster.cpus)):
            raise ClusterError(
                f"up already, with {now.nodes} nodes of {now.cpus} CPUs: python -m tests.cluster down first"
            )
        if kept:
            _write_record(names, _record(names) | {"kept": True})
        if not _in_use(names):  # a session may be testing what befalls a node
            cluster.heal()
        return cluster, False
    size = size or Size()
    if not 1 <= size.nodes <= MAX_NODES:
        raise ClusterError(f"--nodes {size.nodes}: 1 to {MAX_NODES}")
    if reason := obstacle():
        raise ClusterError(reason)
    _clear(names)
    try:
        return _bring_up(names, size, kept), True
    except BaseException:
        _clear(names)
        raise


def _bring_up(names: Names, size: Size, kept: bool) -> Cluster:
    subnet = network.free_subnet(names)
    hosts = [names.controller, *names.nodes(size.nodes)]
    for folder in (names.state, names.state / "log", names.state / "spool", names.private_folder):
        folder.mkdir(mode=0o755)
    names.users.touch()
    names.slurm_conf.write_text(slurm_conf(names, size, subnet))
    (names.state / "cgroup.conf").write_text(CGROUP_CONF)
    lines = ["127.0.0.1 localhost", *(f"{network.address(names, host, subnet)} {host}" for host in hosts)]
    (names.state / "hosts").write_text("\n".join(lines) + "\n")
    daemons.make_disks(names)
    network.make_bridge(names, subnet)
    for host in hosts:
        network.make_host(names, host, subnet)
    holders = {host: daemons.start_host(names, host) for host in hosts}
    daemons.start_munged(names, holders[names.controller])
    daemons.start_slurmctld(names, holders[names.controller])
    cluster = Cluster(names, size.nodes, size.cpus, subnet, holders)
    try:
        cluster.heal()  # starts each slurmd
    except ClusterError as error:
        raise ClusterError("\n".join([str(error), *_last_words(names)])) from None
    known = {host: [pid, start_time(pid)] for host, pid in holders.items()}
    _write_record(names, {"nodes": size.nodes, "cpus": size.cpus, "subnet": subnet, "holders": known, "kept": kept})
    return cluster


def _last_words(names: Names) -> Iterator[str]:
    for path in sorted((names.state / "log").iterdir()):
        yield from (f"{path.name}: {line}" for line in path.read_text(errors="replace").splitlines()[-5:])


def _is_up(names: Names) -> bool:
    record = _record(names)
    if not record or any(start_time(pid) != began or not began for pid, began in record["holders"].values()):
        return False
    return {"slurmctld", "munged"} <= set(map(command_name, network.pids(names.controller)))


def _clear(names: Names) -> None:
    record = _record(names)
    pid, began = record.get("guard") or (0, "")
    if began and pid != os.getpid() and start_time(pid) == began:
        kill(pid)
    network.remove(names)
    daemons.unmount_all(names)
    if names.state.exists():
        shutil.rmtree(names.state)


def _clear_if_unused(names: Names) -> bool:
    """Whether it was cleared; needs the lock."""
    if not names.users.exists() or _record(names).get("kept") or _in_use(names):
        return False
    _clear(names)
    return True


def _in_use(names: Names) -> bool:
    """Whether a test session holds the cluster; stays so while the caller has the lock."""
    with open(names.users, "rb") as users:
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _start_guard(names: Names) -> None:
    record = _record(names)
    pid, began = record.get("guard") or (0, "")
    if record["kept"] or (began and start_time(pid) == began):
        return
    command = [sys.executable, "-m", "tests.cluster", "guard"]
    pid = start(command, log=names.state / "log" / "guard.log", cwd=CHECKOUT)
    _write_record(names, record | {"guard": [pid, start_time(pid)]})


def _record(names: Names) -> dict:
    try:
        return json.loads((names.state / "state.json").read_text())
    except FileNotFoundError:
        return {}


def _write_record(names: Names, record: dict) -> None:
    path = names.state / "state.json"
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(record))
    aside.replace(path)


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    """One at a time brings up or takes down; the kernel frees the lock of a process that dies."""
    descriptor = os.open(Path(__file__).parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
