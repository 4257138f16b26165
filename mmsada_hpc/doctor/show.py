"""What was found, for a person or as JSON."""

import json
import os
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from mmsada_hpc.doctor.merge import Shown, alone, merge
from mmsada_hpc.doctor.report import Level, Line, worst

_COLOURS = {"ok": "32", "warn": "33", "fail": "31"}


@dataclass(frozen=True)
class Findings:
    """All lines, by host, and those that are about several hosts together."""

    hosts: Mapping[str, Sequence[Line]]
    between: Sequence[Line] = field(default_factory=tuple)
    is_cut_off: bool = False
    """Of a rank that could not reach the others."""

    @property
    def level(self) -> Level:
        return worst([*self.between, *(line for lines in self.hosts.values() for line in lines)])

    @property
    def exit_code(self) -> int:
        return int(self.level == "fail")

    def to_json(self) -> str:
        """One object on one line: hosts -> lists of lines."""
        values = {
            "ok": self.level != "fail",
            "level": self.level,
            "hosts": {host: [line.to_json() for line in lines] for host, lines in self.hosts.items()},
            "between": [line.to_json() for line in self.between],
        }
        return json.dumps(values)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Findings":
        hosts = {host: [Line.from_json(x) for x in lines] for host, lines in values["hosts"].items()}
        return cls(hosts, [Line.from_json(x) for x in values["between"]])


def show(findings: Findings, screen: TextIO) -> None:
    """Print for a person: colours and wrapped lines on a terminal only."""
    shown = [*merge(findings.hosts), *alone(findings.between)]
    is_terminal = screen.isatty()
    width = max((len(one.name) for one in shown), default=0)
    columns = shutil.get_terminal_size().columns if is_terminal else None
    for one in shown:
        for text in _lines(one, name_width=width, columns=columns):
            screen.write(f"{_paint(text, one.level, is_terminal and 'NO_COLOR' not in os.environ)}\n")
    screen.write(f"\n{_sum(shown, findings)}\n")
    screen.flush()


def _lines(one: Shown, *, name_width: int, columns: int | None) -> list[str]:
    margin = 4 + 2 + name_width + 2
    head = f"{one.level:<4}  {one.name:<{name_width}}  "
    rest = [*one.odd, *(f"-> {remedy}" for remedy in one.remedies)]
    if columns is None:
        return [head + one.text, *(" " * margin + text for text in rest)]
    room = max(40, columns - margin)
    texts = textwrap.wrap(one.text, room, break_on_hyphens=False) or [""]
    for text in rest:
        texts += textwrap.wrap(text, room, subsequent_indent="   " * text.startswith("->"), break_on_hyphens=False)
    return [head + texts[0], *(" " * margin + text for text in texts[1:])]


def _paint(text: str, level: Level, is_painted: bool) -> str:
    if not is_painted or not text.startswith(level):
        return text
    return f"\x1b[{_COLOURS[level]}m{level}\x1b[0m{text.removeprefix(level)}"


def _sum(shown: Sequence[Shown], findings: Findings) -> str:
    fails, warnings = (sum(one.level == level for one in shown) for level in ("fail", "warn"))
    where = next(iter(findings.hosts)) if len(findings.hosts) == 1 else f"{len(findings.hosts)} nodes"
    return f"{where}: {_count(fails, 'failure')}, {_count(warnings, 'warning')}, {len(shown) - fails - warnings} ok"


def _count(number: int, word: str) -> str:
    return f"{number or 'no'} {word}{'' if number == 1 else 's'}"
