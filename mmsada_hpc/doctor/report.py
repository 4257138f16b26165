"""What a check says: lines of one level each, and what is asked of the checks."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Level = Literal["ok", "warn", "fail"]
Seen = float | str
LEVELS: tuple[Level, ...] = ("ok", "warn", "fail")
_PLACE = re.compile(r"\{(\w+)(?::([^{}]*))?\}")


@dataclass(frozen=True)
class Line:
    """One finding.

    Args:
        what: one line of text; `{key}` and `{key:.0f}` stand for what is in `seen`.
        remedy: what to do, where the level is not ok.
        seen: what differs between equal nodes too: figures that were measured, addresses.
    """

    name: str
    level: Level
    what: str
    remedy: str = ""
    seen: Mapping[str, Seen] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """`what` with `seen` in it."""
        return fill(self.what, {key: [value] for key, value in self.seen.items()})

    def to_json(self) -> dict[str, Any]:
        """As `from_json` takes it, with the text in full for other readers."""
        return {**asdict(self), "seen": dict(self.seen), "text": self.text}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Line":
        return cls(values["name"], values["level"], values["what"], values["remedy"], values["seen"])


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What the checks are asked for; goes to their process as JSON."""

    folder: str = "runs"
    """Where runs will lie."""
    nodes: int = 1
    partition: str | None = None
    """Slurm's; None = where the job is, else the default one."""
    checkpoint_mb: float = 300.0
    """Weights and optimiser state of the two-stream I3D: 25 million parameters, fp32, up to three numbers each."""
    write_mb: int = 64
    floor_mb_s: float = 100.0
    """Slowest all-reduce between nodes that is still good."""
    patience_s: float = 60.0
    """For one check."""


def worst(lines: "list[Line] | tuple[Line, ...]") -> Level:
    """The worst level among the lines; ok where there are none."""
    return max((line.level for line in lines), key=LEVELS.index, default="ok")


def fill(what: str, values: Mapping[str, list[Seen]]) -> str:
    """Put values in: one where all are written alike, the range of numbers, the words one after another."""

    def written(match: re.Match[str]) -> str:
        key, form = match[1], match[2] or ""
        if key not in values:
            return match[0]
        numbers = sorted(value for value in values[key] if not isinstance(value, str))
        if numbers:
            low, high = format(numbers[0], form), format(numbers[-1], form)
            return low if low == high else f"{low}-{high}"
        words = list(dict.fromkeys(str(value) for value in values[key]))
        return ", ".join(words[:4]) + (f" and {len(words) - 4} more" if len(words) > 4 else "")

    return _PLACE.sub(written, what)
