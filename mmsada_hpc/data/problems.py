"""What `mmsada check-data` finds: one row a problem, or a run of frames with the same one; as text and as csv."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from mmsada_hpc.data.tables import csv_bytes

COLUMNS = ("kind", "video", "stream", "frame", "last_frame", "file", "what")
_SHOWN = 20

MISSING, PAST_END, LENGTH = "missing frame", "segment past the end", "RGB and flow of different length"
TRUNCATED, UNREADABLE, SIZE = "truncated file", "unreadable JPEG", "wrong size"
DAMAGED, TWICE = "damaged store", "frames there twice"


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the data. `frame` to `last` are frame numbers of the stream (0 = of no frame)."""

    kind: str
    video: str
    stream: str
    file: str
    what: str
    frame: int = 0
    last: int = 0

    def __str__(self) -> str:
        frames = f" frame {self.frame}" if self.frame else ""
        if self.last > self.frame:
            frames = f" frames {self.frame} to {self.last}"
        who = " ".join(x for x in (self.video, self.stream) if x) + frames
        where = "" if self.what.startswith(self.file) else self.file
        return ": ".join(x for x in (who, where, self.what) if x)


def merged(problems: Iterable[Problem]) -> list[Problem]:
    """Neighbouring frames with the same problem as one row; order is kept."""
    rows: list[Problem] = []
    for one in problems:
        before = rows[-1] if rows else None
        follows = before is not None and one.frame == before.last + 1 and before.frame > 0
        if before is not None and follows and _sort(one) == _sort(before):
            rows[-1] = replace(before, last=max(one.frame, one.last))
        else:
            rows.append(replace(one, last=max(one.frame, one.last)))
    return rows


def _sort(problem: Problem) -> tuple[str, ...]:
    return problem.kind, problem.video, problem.stream, problem.what


def csv_of(problems: Sequence[Problem]) -> bytes:
    """Every problem as a csv; `file` is the first frame's."""
    rows = [(p.kind, p.video, p.stream, p.frame or "", p.last or "", p.file, p.what) for p in problems]
    return csv_bytes(COLUMNS, rows)


def describe(problems: Sequence[Problem], *, everything: str) -> str:
    """Counts by kind, then the first problem of each kind, video and stream; `everything` says where the rest is."""
    if not problems:
        return "  no problems found"
    kinds = Counter(p.kind for p in problems)
    width = max(map(len, kinds))
    videos = len({p.video for p in problems if p.video})
    lines = [f"  {len(problems)} problem{'s' * (len(problems) > 1)} in {videos} video{'s' * (videos != 1)}"]
    lines += [f"    {kind:<{width}}  {count}" for kind, count in kinds.most_common()]
    alike: dict[tuple[str, ...], list[Problem]] = {}
    for problem in problems:
        alike.setdefault((problem.kind, problem.video, problem.stream), []).append(problem)
    shown = list(alike.values())[:_SHOWN]
    lines += [f"  {group[0]}{f' (and {len(group) - 1} more like it)' if len(group) > 1 else ''}" for group in shown]
    if len(problems) > len(shown):
        lines.append(f"  {len(shown)} of {len(problems)} are shown; {everything}")
    return "\n".join(lines)
