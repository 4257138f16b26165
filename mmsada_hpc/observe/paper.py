"""The paper's figures, which are recollection but for three cells: shown on request, never without their mark."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FIGURES_FILE = Path(__file__).with_name("paper_figures.csv")
PAPER_SHIFTS = ("D2->D1", "D3->D1", "D1->D2", "D3->D2", "D1->D3", "D2->D3")
"""In the order of the paper's columns."""
UNVERIFIED = (
    "[M], [M+]: unverified recollection of the paper, to be checked against its PDF; "
    "[I-c#7], [I-s#2]: confirmed by the authors in an issue of their repositories"
)
_VERBS = frozenset({"take", "put", "open", "close", "wash", "cut", "mix", "pour"})
_TEST_SEGMENTS = {"D1": 435, "D2": 750, "D3": 974}
"""Of the released splits (spec 4.1): fewer or more of them make another number."""


@dataclass(frozen=True)
class PaperFigure:
    """One accuracy in percent and where it is from: "M", "M+" (recollection) or "I-c#7", "I-s#2" (confirmed)."""

    top1: float
    mark: str

    @property
    def is_verified(self) -> bool:
        """Whether a source that was read confirms it."""
        return not self.mark.startswith("M")


Figures = dict[tuple[int, str, str], dict[str, PaperFigure]]


@cache
def paper_figures() -> Figures:
    """{(table, stream or "", method): {shift or "mean": figure}}."""
    with FIGURES_FILE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    figures: Figures = {}
    for row in rows:
        confirmed = dict(item.rstrip("]").split(" [") for item in row["verified"].split(";") if item)
        cells = {name: PaperFigure(float(row[name]), confirmed.get(name, row["mark"])) for name in PAPER_SHIFTS}
        cells["mean"] = PaperFigure(float(row["mean"]), row["mark"])
        figures[int(row["table"]), row["stream"], row["method"]] = cells
    return figures


def why_not_comparable(
    *, source: Sequence[str], target: Sequence[str], classes: Sequence[str], set_name: str, segments: int | None
) -> str:
    """Why the paper has no figure for such a run; "" where it has one."""
    shift = f"{'+'.join(source)}->{'+'.join(target)}"
    if shift not in PAPER_SHIFTS or frozenset(classes) != _VERBS:
        return f"{shift} is not a shift of the paper"
    if set_name != "target/test":
        return f"the paper's figures are of target/test, not {set_name}"
    if segments != _TEST_SEGMENTS[target[0]]:
        return f"{shift} was scored on {segments} segments, the paper's split has {_TEST_SEGMENTS[target[0]]}"
    return ""
