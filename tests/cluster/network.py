"""A bridge in the root namespace, and for every host a network namespace with `eth0` on that bridge."""

import contextlib
import functools
import json
import os
from pathlib import Path

from tests.cluster.names import Names
from tests.cluster.processes import ClusterError, end_processes, run

NAMESPACES = Path("/run/netns")
CONTROLLER, FIRST_NODE = 2, 11
"""Last byte of addresses; the root namespace, where clients run, is 1."""


def free_subnet(names: Names) -> str:
    """First three bytes of a /24 that no route here leads to, out of 198.18.0.0/15 (kept for tests by RFC 2544).

    Which of the 512 comes first depends on the checkout's hash.
    """
    routes = run(["ip", "-4", "route", "show", "table", "all"])
    first = int(names.hash, 16)
    for i in range(512):
        number = (first + i) % 512
        subnet = f"198.{18 + number // 256}.{number % 256}"
        if f"{subnet}." not in routes:
            return subnet
    raise ClusterError("every /24 of 198.18.0.0/15 has a route here")


def address(names: Names, host: str, subnet: str) -> str:
    if host == names.controller:
        return f"{subnet}.{CONTROLLER}"
    return f"{subnet}.{FIRST_NODE - 1 + int(host.removeprefix(names.prefix + 'n'))}"


def make_bridge(names: Names, subnet: str) -> None:
    run(["ip", "link", "add", names.bridge, "type", "bridge", "forward_delay", "0", "stp_state", "0"])
    run(["ip", "address", "add", f"{subnet}.1/24", "dev", names.bridge])
    run(["ip", "link", "set", names.bridge, "up"])


def make_host(names: Names, host: str, subnet: str) -> None:
    """The host's namespace with `lo` and `eth0` up."""
    run(["ip", "netns", "add", host])
    link = names.link(host)
    run(["ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", host])
    run(["ip", "link", "set", link, "master", names.bridge, "up"])
    run(["ip", "-n", host, "address", "add", f"{address(names, host, subnet)}/24", "dev", "eth0"])
    run(["ip", "-n", host, "link", "set", "lo", "up"])
    run(["ip", "-n", host, "link", "set", "eth0", "up"])


def namespaces(names: Names) -> list[str]:
    """Network namespaces of this cluster, by name."""
    return sorted(path.name for path in NAMESPACES.glob(f"{names.prefix}*")) if NAMESPACES.is_dir() else []


def links(names: Names) -> list[str]:
    """Links of this cluster in the root namespace."""
    return [
        link["ifname"] for link in json.loads(run(["ip", "-j", "link"])) if link["ifname"].startswith(names.link_prefix)
    ]


def _is_whole(host: str) -> bool:
    """Whether the name stands for a namespace; a crash can leave a bare file."""
    return os.stat(NAMESPACES / host).st_dev != os.stat(NAMESPACES).st_dev


def pids(host: str) -> list[int]:
    """Processes in the host's network namespace: its daemons, and the jobs' with all their children."""
    return [int(word) for word in run(["ip", "netns", "pids", host]).split()]


def remove(names: Names) -> None:
    """End every process of the cluster's namespaces, then remove those and the links; fine when there are none."""
    for host in namespaces(names):
        if _is_whole(host):
            end_processes(functools.partial(pids, host), what=host)
    for link in links(names):
        with contextlib.suppress(ClusterError):  # the kernel removes a link whose other end has gone
            run(["ip", "link", "delete", link])
    for host in namespaces(names):
        run(["ip", "netns", "delete", host])
    left = namespaces(names) + links(names)
    if left:
        raise ClusterError(f"could not be removed: {', '.join(left)}")
