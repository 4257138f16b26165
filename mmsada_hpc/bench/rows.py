"""One row per measurement: shown at once, and kept as JSON with what is needed to judge it."""

import json
import math
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TextIO

from mmsada_hpc.cluster.host import cores
from mmsada_hpc.cluster.join import gather
from mmsada_hpc.cluster.world import World, find_world
from mmsada_hpc.data.shards import writing
from mmsada_hpc.errors import UserError
from mmsada_hpc.observe.git_state import code_state
from mmsada_hpc.observe.record import package_versions

SHOWN = "shown"
"""Of a row's details, a few words that the table shows too."""
_NAME_WIDTH = 60


@dataclass(frozen=True)
class Row:
    """One measurement: what, how much, how sure, and against what."""

    bench: str
    name: str
    """Stable, with the shape in it: the same name in two runs is the same measurement."""
    value: float
    """The median."""
    unit: str
    repeats: int
    min: float
    max: float
    better: Literal["higher", "lower"]
    baseline: str = ""
    """Name of the row of the same run that it is compared with."""
    ratio: float | None = None
    """How many times better than the baseline, whichever way is better."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Shapes, threads and whatever else is worth keeping (JSON)."""


def row(
    bench: str,
    name: str,
    values: Sequence[float],
    unit: str,
    *,
    better: Literal["higher", "lower"],
    baseline: Row | None = None,
    details: Mapping[str, Any] | None = None,
) -> Row:
    """The row of a repeated measurement: median, range, and the ratio to `baseline`, a row of the same unit."""
    value = statistics.median(values)
    ratio = None
    if baseline is not None:
        assert (baseline.unit, baseline.better) == (unit, better), f"{name} and {baseline.name} do not compare"
        ours, theirs = (value, baseline.value) if better == "higher" else (baseline.value, value)
        ratio = ours / theirs if theirs else None
    name_of_baseline = baseline.name if baseline is not None else ""
    return Row(
        bench, name, value, unit, len(values), min(values), max(values), better, name_of_baseline, ratio, details or {}
    )


def row_from(values: Mapping[str, Any]) -> Row:
    """A row that was written as JSON; KeyError where that is something else."""
    return Row(**{field.name: values[field.name] for field in fields(Row)})


def interleaved(ways: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Measure every way once, then every way again, `repeats` times (A B A B ...), so that a drift of the machine meets
    all of them. Each callable returns its figure; one untimed call to warm up is the caller's.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, measure in ways.items():
            found[name].append(measure())
    return found


class Report:
    """What a benchmark tells: rows, shown as they come. A process that is alone also writes each as it comes, so that
    no end loses one; several ranks write theirs together, at the end of each benchmark.

    Args:
        json_to: file that rows are appended to as JSON lines; None = none.
        json_stream: the same for a stream, which stays open.
        profile_to: where `profile` writes a trace; None = it does nothing.
        world: of this process; every rank has its own report, and all make it together.

    Raises:
        UserError: on every rank, where the file cannot be written.
    """

    def __init__(
        self,
        *,
        json_to: Path | None = None,
        json_stream: TextIO | None = None,
        profile_to: Path | None = None,
        world: World | None = None,
    ) -> None:
        self.rows: list[Row] = []
        self.config_hash = ""
        """Of the run's config, for benchmarks that have one; set it before the first row."""
        self._json_to, self._json_stream, self._profile_to = json_to, json_stream, profile_to
        self.world = world or find_world()
        self._kept: list[dict[str, Any]] = []
        self._frame: dict[str, Any] = {}
        self._bench, self._num_traces = "", 0
        self._check()

    def add(self, row: Row) -> None:
        """Show a row and keep it."""
        if row.bench != self._bench:
            self._bench = row.bench
            print(_heading(row.bench, self.world), flush=True)
        print(describe(row), flush=True)
        self.rows.append(row)
        self._frame = self._frame or frame(self.world)
        self._kept.append({**asdict(row), **self._frame, "config_hash": self.config_hash})
        if self.world.size == 1:
            self.write()

    def write(self) -> None:
        """Append the rows of all ranks that are not written yet; call it on every rank.

        Raises:
            UserError: the file cannot be written.
        """
        kept, self._kept = self._kept, []
        if self._json_to is None and self._json_stream is None:
            return
        rows = [row for of_rank in gather(self.world, kept) for row in of_rank]
        if self.world.rank == 0 and rows:
            self._append("".join(json.dumps(_finite(row)) + "\n" for row in rows))

    def adopt(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep rows that processes started by this one have shown and written."""
        self.rows += [row_from(values) for values in rows]
        self._kept += [{**values, "command": command()} for values in rows]

    def profile(self, action: Callable[[], object], *, name: str = "") -> None:
        """Run `action` once under torch's profiler where a trace was asked for; else nothing is run.

        The first trace of a process has the file's own name; `name`, the number of a further one and the rank go in
        before its suffix.
        """
        if self._profile_to is None:
            return
        from torch.profiler import profile

        path = self._trace_path(self._profile_to, name)
        with profile() as trace:
            action()
        writing(path, lambda: path.parent.mkdir(parents=True, exist_ok=True))
        writing(path, lambda: trace.export_chrome_trace(str(path)))
        self._num_traces += 1
        print(f"  trace: {path}", flush=True)

    def _trace_path(self, path: Path, name: str) -> Path:
        parts = [name.replace(" ", "_").replace("/", "_")] if name else []
        if self._num_traces:
            parts.append(str(self._num_traces + 1))
        if self.world.size > 1:
            parts.append(f"rank{self.world.rank}")
        return path.with_name(".".join([path.stem, *parts]) + (path.suffix or ".json"))

    def _check(self) -> None:
        """Before anything is measured, on all ranks alike: one that went on would wait for the others."""
        path, why = self._json_to, ""
        if path is not None and self.world.rank == 0:
            try:
                writing(path, lambda: _append(path, ""))
            except UserError as error:
                why = str(error)
        if path is not None and (told := "".join(gather(self.world, why))):
            raise UserError(told)

    def _append(self, lines: str) -> None:
        if self._json_stream is not None:
            self._json_stream.write(lines)
            self._json_stream.flush()
        if self._json_to is not None:
            path = self._json_to
            writing(path, lambda: _append(path, lines))


def frame(world: World) -> dict[str, Any]:
    """What every row of a process is told with: command, machine, versions, commit."""
    git = code_state()
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": command(),
        "machine": machine(),
        "device": device(),
        "rank": world.rank,
        "world_size": world.size,
        "versions": package_versions(),
        "commit": str(git.get("commit", "")) + ("-dirty" if git.get("dirty") else ""),
    }


def command() -> str:
    """What was typed."""
    return shlex.join(["mmsada", *sys.argv[1:]])


def machine() -> str:
    """This host in words: processor and the cores this process may use."""
    return f"{platform.node()}: {_processor()}, {cores()} cores"


def device() -> str:
    """The GPU in words, or cpu, also where nothing that was measured has loaded torch."""
    torch = sys.modules.get("torch")
    return str(torch.cuda.get_device_name()) if torch is not None and torch.cuda.is_available() else "cpu"


def describe(row: Row) -> str:
    """A row as a line of the table."""
    spread = f"{short(row.min)} - {short(row.max)}" if row.repeats > 1 else ""
    against = f"{row.ratio:.2f}x {_what_differs(row.baseline, row.name)}" if row.ratio is not None else ""
    told = "  ".join(filter(None, (against, str(row.details.get(SHOWN, "")))))
    return f"  {row.name:<{_NAME_WIDTH}} {short(row.value):>9} {row.unit:<10} {spread:>19}  {told}".rstrip()


def _heading(bench: str, world: World) -> str:
    ranks = f", rank 0 of {world.size}" if world.size > 1 else ""
    columns = f"  {'':<{_NAME_WIDTH}} {'median':>9} {'':<10} {'min - max':>19}  times better than"
    return f"{bench}: {machine()}, {device()}{ranks}\n{columns}"


def _what_differs(baseline: str, name: str) -> str:
    """The baseline's name without the words at its end that `name` ends in too, such as the shape."""
    words, others = baseline.split(), name.split()
    while len(words) > 1 and len(others) > 1 and words[-1] == others[-1]:
        words.pop()
        others.pop()
    return " ".join(words).rstrip(",:")


def short(value: float) -> str:
    """Three digits that mean something, without an exponent where one can do without."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}" if digits <= 6 else f"{value:.2e}"


def _finite(value: Any) -> Any:
    """JSON has no NaN: such a figure is null, in details too."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _append(path: Path, lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(lines)
