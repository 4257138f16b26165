"""The lines of several nodes as one: what is equal once, and the odd ones by host name."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmsada_hpc.doctor.report import LEVELS, Level, Line, fill, worst

# Equal nodes that measure five times as much as one another are not equal.
_FAR = 5.0
_MAX_HOSTS, _MAX_PAIR = 4, 100


@dataclass(frozen=True)
class Shown:
    """One line on the screen, what is odd about it, and what to do."""

    level: Level
    name: str
    text: str
    odd: tuple[str, ...] = ()
    remedies: tuple[str, ...] = ()


def alone(lines: Sequence[Line]) -> list[Shown]:
    """The lines of one host."""
    return [Shown(x.level, x.name, x.text, remedies=(x.remedy,) if x.remedy else ()) for x in lines]


def merge(by_host: Mapping[str, Sequence[Line]]) -> list[Shown]:
    """The lines of several hosts; hosts that say the same are counted, those that do not are named."""
    if len(by_host) == 1:
        return alone(*by_host.values())
    names = dict.fromkeys(line.name for lines in by_host.values() for line in lines)
    return [_merge_one(name, by_host) for name in names]


def _merge_one(name: str, by_host: Mapping[str, Sequence[Line]]) -> Shown:
    found = {host: line for host, lines in by_host.items() for line in lines if line.name == name}
    groups: dict[tuple[Level, str, str], dict[str, Line]] = defaultdict(dict)
    for host, line in found.items():
        groups[line.level, line.what, line.remedy][host] = line
    # The most common, the better one of two, the earlier one.
    ranked = sorted(groups.values(), key=lambda g: (-len(g), LEVELS.index(next(iter(g.values())).level)))
    common, others = ranked[0], ranked[1:]
    silent = [host for host in by_host if host not in found]
    odd = [_odd(group, common) for group in others] + ([f"{_hosts(silent)}: nothing said"] if silent else [])
    far = _far(common)
    level = worst(list(found.values()))
    if level == "ok" and (odd or far):
        level = "warn"
    one = next(iter(common.values()))
    values = {key: [line.seen[key] for line in common.values()] for key in one.seen}
    count = _count(len(common), len(by_host))
    return Shown(level, name, f"{fill(one.what, values)} ({count})", (*odd, *far), _remedies(ranked, odd, far))


def _count(common: int, hosts: int) -> str:
    if common < hosts:
        return f"{common} of {hosts} nodes"
    return "both nodes" if hosts == 2 else f"all {hosts} nodes"


def _remedies(ranked: Sequence[Mapping[str, Line]], odd: Sequence[str], far: Sequence[str]) -> tuple[str, ...]:
    told = [line.remedy for group in ranked for line in group.values() if line.remedy]
    if not told and (odd or far):
        told = ["one node unlike the others slows or breaks a run: repair it, or leave it out (sbatch --exclude)"]
    return tuple(dict.fromkeys(told))


def _odd(group: Mapping[str, Line], common: Mapping[str, Line]) -> str:
    """`mn2: 2 cores, the others 8 cores`; of a list of things only those that differ."""
    here, there = (next(iter(lines.values())).text for lines in (group, common))
    parts, other_parts = here.split(", "), there.split(", ")
    pairs = list(zip(parts, other_parts, strict=False)) if len(parts) == len(other_parts) else [(here, there)]
    differing = [pair for pair in pairs if pair[0] != pair[1]]
    mine, theirs = (", ".join(pair[i] for pair in differing) for i in (0, 1))
    if not differing or len(mine) + len(theirs) > _MAX_PAIR:  # the line above says what the others have
        return f"{_hosts(list(group))}: {here}"
    return f"{_hosts(list(group))}: {mine}; {'the others' if len(common) > 1 else _hosts(list(common))}: {theirs}"


def _far(common: Mapping[str, Line]) -> list[str]:
    """Hosts whose figures are far from the others'."""
    told = []
    for key in next(iter(common.values())).seen:
        figures = {host: v for host, line in common.items() if not isinstance(v := line.seen[key], str)}
        if not figures:
            continue
        low, high = min(figures, key=figures.__getitem__), max(figures, key=figures.__getitem__)
        if figures[high] > _FAR * figures[low] > 0:
            told.append(f"{key.replace('_', ' ')}: {figures[low]:.3g} on {low}, {figures[high]:.3g} on {high}")
    return told


def _hosts(hosts: Sequence[str]) -> str:
    more = f" and {len(hosts) - _MAX_HOSTS} more" if len(hosts) > _MAX_HOSTS else ""
    return ", ".join(hosts[:_MAX_HOSTS]) + more
