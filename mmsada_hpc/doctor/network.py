"""The host's name and the interface it leads to, which is what gloo and NCCL take where nobody tells them another."""

import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

import psutil

from mmsada_hpc.doctor.report import Ask, Level, Line

VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@dataclass(frozen=True)
class Names:
    """What this host is called and where that leads.

    Args:
        address: what `name` resolves to; None = nothing.
        back: the name that `address` resolves to; None = none.
        interfaces: those that are up, with their IPv4 addresses.
    """

    name: str
    address: str | None
    back: str | None
    interfaces: Mapping[str, list[str]] = field(default_factory=dict)

    @property
    def interface(self) -> str | None:
        """Of `address`; all of 127.* is the loopback's."""
        if self.address is not None and ipaddress.ip_address(self.address).is_loopback:
            return "lo"
        return next((name for name, found in self.interfaces.items() if self.address in found), None)

    @property
    def others(self) -> str:
        """The interfaces that could be used, to choose from."""
        return ", ".join(name for name in self.interfaces if name != "lo") or "none"


def check(ask: Ask) -> list[Line]:
    """The host name, then the variables that choose an interface."""
    names = look()
    return [judge_name(names, nodes=ask.nodes, env=os.environ), judge_variables(names, os.environ, nodes=ask.nodes)]


def look() -> Names:
    """Ask the resolver both ways, and the kernel."""
    name = socket.gethostname()
    address = back = None
    try:
        address = str(socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
        back = socket.gethostbyaddr(address)[0]
    except OSError:
        pass  # None says so
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    found = {
        interface: [a.address for a in addresses if a.family == socket.AF_INET]
        for interface, addresses in psutil.net_if_addrs().items()
        if interface in up
    }
    return Names(name, address, back, {interface: a for interface, a in found.items() if a})


def judge_name(names: Names, *, nodes: int, env: Mapping[str, str]) -> Line:
    """Loopback, or nothing, is harmless for one host and breaks several."""
    alone = nodes == 1
    told = env.get("GLOO_SOCKET_IFNAME")
    choose = f"set `interface:` in the profile, or GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME; up here: {names.others}"
    if names.address is None:
        what = f"{names.name} leads to no address"
        if alone:
            return Line("host name", "ok", f"{what}, which matters between hosts only")
        return Line("host name", "fail", what, f"add it to DNS or /etc/hosts on every node; or {choose}")
    seen: dict[str, float | str] = {"host": names.name, "address": names.address}
    what = f"{{host}} -> {{address}} on {names.interface or 'no interface that is up'}"
    if alone:
        return Line(
            "host name", "ok", f"{what}{' (the loopback, enough for one host)' * (names.interface == 'lo')}", seen=seen
        )
    if names.interface in ("lo", None):
        why = "the loopback, which no other host can reach" if names.interface == "lo" else "not this host's address"
        level: Level = "warn" if told else "fail"
        return Line("host name", level, f"{what}: {why}", f"repair /etc/hosts on the nodes; or {choose}", seen)
    if names.back is None or names.back.split(".")[0] != names.name.split(".")[0]:
        what = f"{what}, but that address is called {names.back or 'nothing'}"
        return Line("host name", "warn", what, "make DNS or /etc/hosts give the same name both ways", seen)
    return Line("host name", "ok", f"{what}, and back", seen=seen)


def judge_variables(names: Names, env: Mapping[str, str], *, nodes: int) -> Line:
    """The interfaces they name exist."""
    given = {variable: env[variable] for variable in VARIABLES if env.get(variable)}
    if not given:
        return Line("interface", "ok", "none set: gloo and NCCL take the host name's")
    text = " ".join(f"{variable}={value}" for variable, value in given.items())
    missing = [f"{variable}={v}" for variable, v in given.items() if not _exists(v, names, prefix=variable[0] == "N")]
    if missing:
        what = f"{' and '.join(missing)}: no such interface is up"
        return Line("interface", "fail", what, f"name one that is: {names.others}")
    if nodes > 1 and "lo" in given.values():
        return Line("interface", "fail", f"{text}: the loopback reaches no other host", f"name another: {names.others}")
    return Line("interface", "ok", text)


def _exists(value: str, names: Names, *, prefix: bool) -> bool:
    """gloo takes names; NCCL prefixes, `=name` for a whole one, `^` for all but these (then any other will do)."""
    if prefix and value.startswith("^"):
        left = value[1:].removeprefix("=").split(",")
        return any(not name.startswith(tuple(left)) for name in names.interfaces)
    whole = not prefix or value.startswith("=")
    wanted = value.removeprefix("=").split(",")
    return any(name in wanted if whole else name.startswith(tuple(wanted)) for name in names.interfaces)
