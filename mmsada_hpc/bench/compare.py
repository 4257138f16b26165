"""`mmsada bench compare A B`: what changed between two runs, and whether it is more than noise."""

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mmsada_hpc.bench.rows import Row, row_from, short
from mmsada_hpc.errors import UserError

HELP = (
    "Two files of rows (--json of a benchmark), measurement by measurement. A change counts when the ranges [min, max] "
    "of the two runs have nothing in common and the medians differ by more than --threshold percent; with fewer than "
    "three repeats on either side nothing is said."
)
_FEWEST = 3
_FRAME = ("machine", "device", "world_size", "versions", "config_hash")

Key = tuple[str, str, int]
"""Benchmark, name, rank."""
Verdict = Literal["worse", "better", "same", "unsure", "no match", "no figure"]
_TOLD: dict[Verdict, str] = {
    "worse": "WORSE",
    "better": "better",
    "same": "",
    "unsure": f"? under {_FEWEST} repeats",
    "no match": "? other unit",
    "no figure": "? no figure",
}


@dataclass(frozen=True)
class Measured:
    """A row, and what it was told with."""

    row: Row
    frame: Mapping[str, Any]

    @property
    def key(self) -> Key:
        return self.row.bench, self.row.name, int(self.frame["rank"])

    @property
    def has_figure(self) -> bool:
        """Not where the measurement gave no number, which rows tell as null."""
        return has_figure(self.row)


@dataclass(frozen=True)
class Change:
    """One measurement in both files."""

    key: Key
    before: Row
    after: Row
    verdict: Verdict

    @property
    def percent(self) -> float:
        """Of the median, before to after; 0 where one has no figure."""
        if self.verdict == "no figure":
            return 0.0
        return 100 * (self.after.value - self.before.value) / abs(self.before.value) if self.before.value else 0.0


def read_rows(path: Path) -> dict[Key, Measured]:
    """The newest row of every measurement in a file, in the file's order, also where that one has no figure (NaN).

    Raises:
        UserError: the file or a line in it is not what a benchmark writes.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    found: dict[Key, Measured] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            measured = Measured(_row(values), {"rank": 0, **values})
            found.pop(measured.key, None)
            found[measured.key] = measured
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}:{number}: not a row of `mmsada bench ... --json FILE`") from error
    if not any(measured.has_figure for measured in found.values()):
        raise UserError(f"{path}: holds no measurement")
    return found


def _row(values: Mapping[str, Any]) -> Row:
    """As `row_from`, null read as NaN."""
    found = row_from(values)
    value, low, high = (math.nan if x is None else x for x in (found.value, found.min, found.max))
    if not all(isinstance(x, int | float) for x in (value, low, high)):
        raise TypeError
    return replace(found, value=value, min=low, max=high)


def has_figure(row: Row) -> bool:
    """Whether its median and range are numbers."""
    return all(math.isfinite(x) for x in (row.value, row.min, row.max))


def judge(before: Row, after: Row, *, threshold: float) -> Verdict:
    """The rule of `HELP`; `threshold` in percent."""
    if (before.unit, before.better) != (after.unit, after.better):
        return "no match"
    if not (has_figure(before) and has_figure(after)):
        return "no figure"
    if min(before.repeats, after.repeats) < _FEWEST:
        return "unsure"
    apart = before.max < after.min or after.max < before.min
    if not apart or abs(after.value - before.value) <= threshold / 100 * abs(before.value):
        return "same"
    return "better" if (after.value > before.value) == (after.better == "higher") else "worse"


def compare(before: Mapping[Key, Measured], after: Mapping[Key, Measured], *, threshold: float) -> list[Change]:
    """Measurements of both, in the order of `before`."""
    common = [(key, before[key].row, after[key].row) for key in before if key in after]
    return [Change(key, b, a, judge(b, a, threshold=threshold)) for key, b, a in common]


def warnings(before: Iterable[Measured], after: Iterable[Measured]) -> list[str]:
    """What differs between the circumstances of the two runs, a line each."""
    found = []
    for field in _FRAME:
        values = [_values(side, field) for side in (before, after)]
        if values[0] != values[1]:
            found.append(f"{field} differs: {_some(values[0] - values[1])} | {_some(values[1] - values[0])}")
    return found


def _values(side: Iterable[Measured], field: str) -> set[str]:
    values = [one.frame.get(field) for one in side]
    if field == "versions":
        return {f"{name} {version}" for value in values if isinstance(value, dict) for name, version in value.items()}
    return {str(value) for value in values}


def _some(values: set[str]) -> str:
    names = sorted(values)
    return ", ".join(name or "none" for name in names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def describe(changes: Sequence[Change], *, threshold: float) -> str:
    """A table, what changed first, and a summary."""
    width = max([len(_label(change.key)) for change in changes], default=0)
    order = list(_TOLD)
    lines = [f"  {'':<{width}} {'A':>9} {'B':>9} {'unit':<8} {'change':>8}"]
    bench = ""
    for change in sorted(changes, key=lambda c: (c.key[0], order.index(c.verdict), -abs(c.percent))):
        if change.key[0] != bench:
            bench = change.key[0]
            lines.append(bench)
        a, b = (short(row.value) if has_figure(row) else "none" for row in (change.before, change.after))
        line = f"  {_label(change.key):<{width}} {a:>9} {b:>9} {change.after.unit:<8} {change.percent:>+7.1f}%"
        lines.append(f"{line}  {_TOLD[change.verdict]}".rstrip())
    count = Counter(change.verdict for change in changes)
    summary = f"{len(changes)} measurements in both: {count['worse']} worse, {count['better']} better, "
    summary += f"{count['same']} within noise (ranges overlap, or less than {threshold:g} %)"
    unsure = count["unsure"] + count["no match"] + count["no figure"]
    return "\n".join([*lines, summary + (f", {unsure} not judged" if unsure else "")])


def _label(key: Key) -> str:
    return key[1] + (f", rank {key[2]}" if key[2] else "")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mmsada bench compare`."""
    parser.add_argument("before", type=Path, metavar="A", help="rows of the first run")
    parser.add_argument("after", type=Path, metavar="B", help="rows of the second")
    parser.add_argument(
        "--threshold",
        type=float,
        default=3.0,
        metavar="PERCENT",
        help="smaller changes are noise (default %(default)s)",
    )
    parser.add_argument("--fail-on-regression", action="store_true", help="exit code 1 where something became worse")


def run(args: argparse.Namespace) -> int:
    """Print the table; 1 only where it was asked for and something became worse."""
    if args.threshold < 0:
        raise UserError(f"--threshold {args.threshold:g}: a percentage, 0 or more")
    before, after = read_rows(args.before), read_rows(args.after)
    for line in warnings(before.values(), after.values()):
        print(f"warning: {line}")
    changes = compare(before, after, threshold=args.threshold)
    print(describe(changes, threshold=args.threshold))
    for path, mine, others in ((args.before, before, after), (args.after, after, before)):
        for key in (key for key in mine if key not in others):
            print(f"only in {path}: {key[0]}: {_label(key)}")
    return int(args.fail_on_regression and any(change.verdict == "worse" for change in changes))
