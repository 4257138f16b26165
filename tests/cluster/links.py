"""The links between the nodes made as slow, and as far, as those of another network."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import daemons, network
from tests.cluster.cluster import Cluster
from tests.cluster.processes import ClusterError, kill, run, start, start_time, wait_until

_FOLDER = Path(__file__).parent
_PROBE_S = 60.0
_READY_S = 10.0
# A packet as TCP hands it over is sent as one, and as many bytes may go at full speed after a pause: both small beside
# what is sent, so that a message takes the time that the rate says.
_PACKET = "16384"
_BURST, _LATENCY = "32kb", "400ms"
# As suits a cluster; this machine's own settings may be those of a wide network. Reno is what every kernel allows here.
_TCP = {"tcp_congestion_control": "reno", "tcp_slow_start_after_idle": "0", "tcp_no_metrics_save": "1"}


@dataclass(frozen=True)
class Link:
    """What lies between any two nodes, each of which has a full-duplex port of that rate.

    Args:
        rate_mbit: of a node's port, each way, 10^6 bits a second; None = as fast as this machine.
        delay_ms: one way from node to node; a round trip takes twice as long.
    """

    rate_mbit: float | None = None
    delay_ms: float | None = None

    def __str__(self) -> str:
        rate = "unlimited" if self.rate_mbit is None else f"{self.rate_mbit:g} mbit/s"
        return f"{rate}, {self.delay_ms or 0:g} ms"


def parse_link(rate: str | None, delay: str | None) -> Link:
    """`200mbit`, `2gbit`; `1ms`, `500us`.

    Raises:
        ClusterError: something else.
    """
    return Link(
        _parse(rate, {"mbit": 1.0, "gbit": 1000.0}, "--rate"), _parse(delay, {"ms": 1.0, "us": 0.001}, "--delay")
    )


def _parse(text: str | None, units: dict[str, float], option: str) -> float | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([a-z]+)", text)
    if match is None or match[2] not in units or float(match[1]) == 0:
        raise ClusterError(f"{option} {text!r}: a number and its unit, {' or '.join(units)}")
    return float(match[1]) * units[match[2]]


def shape(cluster: Cluster, link: Link) -> None:
    """Make every node's link so: a token bucket at both of its ends, and between the nodes, instead of the bridge, a
    switch that holds every frame (the kernel's netem is not everywhere). The nodes' TCP is set as on a cluster, and
    stays so.

    Raises:
        ClusterError: it cannot be done, for instance because there is no C compiler.
    """
    clear(cluster)
    for node in cluster.nodes:
        _set_tcp(node)
        if link.rate_mbit is not None:
            bucket = ["rate", f"{link.rate_mbit * 1000:.0f}kbit", "burst", _BURST, "latency", _LATENCY]
            for namespace, device in _ends(cluster, node):
                run(["ip", *namespace, "link", "set", device, "gso_max_size", _PACKET])
                run(["tc", *namespace, "qdisc", "add", "dev", device, "root", "tbf", *bucket])
    if link.delay_ms:
        _start_switch(cluster, round(1000 * link.delay_ms))


def _ends(cluster: Cluster, node: str) -> list[tuple[list[str], str]]:
    """Where the node sends, and where it is sent to: words for `ip` and `tc`, and the device."""
    return [(["-n", node], "eth0"), ([], cluster.names.link(node))]


def _set_tcp(node: str) -> None:
    for name, value in _TCP.items():
        run(["ip", "netns", "exec", node, "sh", "-c", f"echo {value} > /proc/sys/net/ipv4/{name}"])


def _uplink(cluster: Cluster) -> tuple[str, str]:
    """The bridge's end and the switch's end of what lies between them."""
    return f"{cluster.names.link_prefix}da", f"{cluster.names.link_prefix}db"


def _start_switch(cluster: Cluster, microseconds: int) -> None:
    program, log = cluster.names.state / "delay_switch", cluster.names.state / "log" / "delay_switch.log"
    compiler = shutil.which("cc")
    if compiler is None:
        raise ClusterError("a delay needs a C compiler (cc): apt-get install gcc libc6-dev")
    run([compiler, "-O2", "-o", program, _FOLDER / "delay_switch.c"], timeout=60)
    bridge_end, switch_end = _uplink(cluster)
    run(["ip", "link", "add", bridge_end, "type", "veth", "peer", "name", switch_end])
    run(["ip", "link", "set", bridge_end, "master", cluster.names.bridge, "up"])
    ports = [switch_end, *map(cluster.names.link, cluster.nodes)]
    for port in ports:  # this machine itself must not answer there
        run(["ip", "link", "set", port, "nomaster", "arp", "off", "up"])
    log.unlink(missing_ok=True)
    pid = start([program, str(microseconds), *ports], log=log)
    _switch_record(cluster).write_text(json.dumps([pid, start_time(pid)]))
    wait_until(lambda: "ready" in log.read_text(), timeout=_READY_S, what=f"the switch: {log}")


def _switch_record(cluster: Cluster) -> Path:
    return cluster.names.state / "delay_switch.json"


def _end_switch(cluster: Cluster) -> None:
    record, bridge_end = _switch_record(cluster), _uplink(cluster)[0]
    if not record.exists():
        return
    pid, began = json.loads(record.read_text())
    if began and start_time(pid) == began:
        kill(pid)
        wait_until(lambda: start_time(pid) != began, timeout=_READY_S, what="the end of the switch")
    for port in map(cluster.names.link, cluster.nodes):
        run(["ip", "link", "set", port, "arp", "on", "master", cluster.names.bridge])
    with contextlib.suppress(ClusterError):  # it did not come that far
        run(["ip", "link", "delete", bridge_end])
    record.unlink()


def clear(cluster: Cluster) -> None:
    """Every link as it was; fine when it is."""
    _end_switch(cluster)
    for node in cluster.nodes:
        for namespace, device in _ends(cluster, node):
            if _limits(namespace, device):
                run(["tc", *namespace, "qdisc", "delete", "dev", device, "root"])
                run(["ip", *namespace, "link", "set", device, "gso_max_size", "65536"])


@contextlib.contextmanager
def shaped(cluster: Cluster, link: Link) -> Iterator[None]:
    """Inside it every node has that link."""
    shape(cluster, link)
    try:
        yield
    finally:
        clear(cluster)


def limits(cluster: Cluster) -> list[str]:
    """What is between the nodes that was not there at first; empty when they are cleared."""
    found = [line for node in cluster.nodes for end in _ends(cluster, node) for line in _limits(*end)]
    return found + [f"{link} to a switch" for link in network.links(cluster.names) if link in _uplink(cluster)]


def _limits(namespace: list[str], device: str) -> list[str]:
    lines = run(["tc", *namespace, "qdisc", "show", "dev", device]).splitlines()
    return [line for line in lines if line.split()[1] == "tbf"]


def measure(cluster: Cluster, sender: str, receiver: str, *, megabytes: float) -> tuple[float, float]:
    """10^6 bits a second of one TCP stream, and the milliseconds of a round trip.

    Raises:
        ClusterError: no answer in time.
    """
    words: list[str | Path] = [sys.executable, _FOLDER / "link_probe.py"]
    answerer = subprocess.Popen(
        daemons.inside(cluster.holders[receiver], [*words, "answer"]), stdout=subprocess.PIPE, text=True
    )
    try:
        assert answerer.stdout is not None
        port = answerer.stdout.readline().strip()
        where = [cluster.address(receiver), port, f"{megabytes:g}"]
        said = cluster.exec(sender, [*words, "ask", *where], timeout=_PROBE_S)
    finally:
        answerer.kill()
        answerer.wait()
    mbit, round_ms = map(float, said.split())
    return mbit, round_ms
