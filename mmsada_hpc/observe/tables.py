"""The paper's three tables from the runs there are: methods by shift, ablation of the losses, single streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmsada_hpc.errors import UserError
from mmsada_hpc.observe.cells import EMPTY, Cell, gather, mean_of, score_of, segments_of
from mmsada_hpc.observe.paper import PAPER_SHIFTS, paper_figures, why_not_comparable
from mmsada_hpc.observe.runs import Run
from mmsada_hpc.observe.table_notes import TableNotes, notes_on
from mmsada_hpc.observe.wording import is_number, joined, streams

METHODS = (
    "source_only",
    "adabn (mixture)",
    "adabn (target)",
    "mmd",
    "mcd",
    "mmsada (lambda_d 1)",
    "supervised_target",
)
ABLATION = (
    "source_only",
    "self_supervised (seg)",
    "adversarial (lambda_d 1)",
    "adversarial (lambda_d 0.5)",
    "mmsada (lambda_d 1)",
    "mmsada (lambda_d 0.5)",
)
STREAMS = ("source_only", "adversarial (lambda_d 1)", "mmsada (lambda_d 1)")
# The losses that the ablation is about: a setting of them that the paper does not have is one more row of it.
_ABLATED = ("self_supervised", "adversarial")


@dataclass(frozen=True)
class Row:
    """One line of a table. `origin`: runs, paper or level (chance, majority); a rule is drawn between `group`s."""

    name: str
    origin: str
    cells: tuple[Cell, ...]
    group: int = 0


@dataclass(frozen=True)
class Table:
    """`columns` name the cells of every row: shifts, then "mean" over them, then "recall" where it was asked for."""

    number: int
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    absent: tuple[str, ...]
    """Rows of the paper that no run was given for."""


@dataclass(frozen=True)
class Options:
    """What to tabulate: the evaluated set, a column of mean class recall, the paper's figures beside."""

    set_name: str = "target/test"
    recall: bool = False
    paper: bool = False


@dataclass(frozen=True)
class Tables:
    """All of it; `notes` belong to every table."""

    tables: tuple[Table, ...]
    notes: TableNotes


@dataclass(frozen=True)
class _Key:
    label: str
    recipe: str

    @property
    def name(self) -> str:
        return f"{self.label}, {self.recipe} recipe" if self.recipe else self.label


class _Builder:
    """The runs in their places, and rows made of them."""

    def __init__(self, runs: Sequence[Run], options: Options) -> None:
        self.runs, self.options = runs, options
        self.finished = [run for run in runs if run.is_finished]
        recipes = {str(run.about.get("recipe") or "") for run in runs}
        self.places: dict[_Key, list[Run]] = {}
        for run in runs:
            recipe = str(run.about.get("recipe") or "") if len(recipes) > 1 else ""
            self.places.setdefault(_Key(run.label, recipe), []).append(run)
        self.shifts = shifts_in_order(runs)
        self.columns = (*self.shifts, *(["mean"] if len(self.shifts) > 1 else []))

    def keys(self, label: str) -> list[_Key]:
        """A label's rows: one, or one for each recipe, released first."""
        return sorted((key for key in self.places if key.label == label), key=lambda key: key.recipe != "released")

    def at(self, key: _Key, shift: str) -> list[Run]:
        """Runs of one place, finished or not."""
        return runs_at(self.places[key], shift)

    def row(self, key: _Key, score_key: str = "top1", *, group: int, prefix: str = "") -> Row:
        """One method's line: `score_key` at every shift, the mean, and with it the recall where that is asked for."""
        set_name = self.options.set_name

        def cells(score: str) -> list[Cell]:
            value = score_of(score, set_name)
            return [
                gather([run for run in self.at(key, shift) if run.is_finished], value, set_name=set_name)
                for shift in self.shifts
            ]

        found = cells(score_key)
        mean = [mean_of(found)] if len(self.shifts) > 1 else []
        # recall is measured of the fused prediction alone
        recall = [mean_of(cells("mean_recall"))] if self.options.recall and score_key == "top1" else []
        return Row(prefix + key.name, "runs", (*found, *mean, *recall), group)

    def paper_row(self, table: int, stream: str, label: str, *, group: int, prefix: str = "") -> list[Row]:
        figures = paper_figures().get((table, stream, label)) if self.options.paper else None
        shifts = [shift if self.is_papers(shift) else "" for shift in self.shifts]
        if figures is None or not any(shifts):
            return []
        cells = [_paper_cell(figures[shift].top1, figures[shift].mark) if shift else EMPTY for shift in shifts]
        if len(shifts) > 1:  # the paper's mean is over its six shifts, and over nothing else
            whole = set(shifts) == set(PAPER_SHIFTS)
            cells.append(_paper_cell(figures["mean"].top1, figures["mean"].mark) if whole else EMPTY)
        cells += [EMPTY] if self.options.recall and not stream else []
        return [Row(f"  paper's {prefix}{label}", "paper", tuple(cells), group)]

    def is_papers(self, shift: str) -> bool:
        """Whether the paper has figures for what the runs of this column were scored on."""
        runs = [run for run in self.finished if run.shift == shift]
        return bool(runs) and not any(self.why_no_paper(run) for run in runs)

    def why_no_paper(self, run: Run) -> str:
        return why_not_comparable(
            source=run.about.get("source") or [],
            target=run.about.get("target") or [],
            classes=run.about.get("classes") or [],
            set_name=self.options.set_name,
            segments=segments_of(run, self.options.set_name),
        )

    def table(self, number: int, title: str, rows: list[Row], absent: Sequence[str]) -> Table:
        recall = self.options.recall and number < 3
        columns = (*self.columns, *(["recall"] if recall else []))
        return Table(number, title, columns, (*rows, *_levels(self, recall=recall)), tuple(absent))

    def labelled(self, labels: Sequence[str], number: int) -> list[Row]:
        """The rows of the paper's table `number`, as it names them, each with the paper's figures."""
        rows = []
        for label in labels:
            rows += [self.row(key, group=0) for key in self.keys(label)]
            # which statistics the paper's AdaBN figures were made with is not known: they stand once, after both
            rows += self.paper_row(number, "", "adabn" if label == "adabn (target)" else label, group=0)
        return rows


def runs_at(runs: Sequence[Run], shift: str) -> list[Run]:
    """Those on `shift`. A supervised run, which has no source, stands in every column with its target."""
    exact = [run for run in runs if run.shift == shift]
    target = shift.partition("->")[2] or shift
    return exact or [run for run in runs if run.is_supervised and joined(run.about.get("target")) == target]


def _paper_cell(top1: float, mark: str) -> Cell:
    return Cell(mean=top1, mark=mark)


def shifts_in_order(runs: Sequence[Run]) -> tuple[str, ...]:
    """The columns: the paper's shifts in its order, then the others by name."""
    found = {run.shift for run in runs if not run.is_supervised and run.shift}
    found = found or {run.shift for run in runs if run.shift}
    papers = [shift for shift in PAPER_SHIFTS if shift in found]
    return (*papers, *sorted(found - set(papers)))


def _levels(builder: _Builder, *, recall: bool) -> list[Row]:
    """What takes no training: guessing, and naming the most common class of the evaluated set."""
    set_name, rows = builder.options.set_name, []
    for name, level in (("chance", _chance), ("majority class", _majority)):
        cells = []
        for shift in builder.shifts:
            values = {level(run, set_name) for run in builder.finished if run.shift == shift} - {None}
            cells.append(Cell(mean=values.pop()) if len(values) == 1 else EMPTY)
        if any(cell.mean is not None for cell in cells):
            filled = all(cell.mean is not None for cell in cells)
            mean = [mean_of(cells) if filled else EMPTY] if len(cells) > 1 else []
            rows.append(Row(name, "level", (*cells, *mean, *([EMPTY] if recall else [])), group=9))
    return rows


def _chance(run: Run, set_name: str) -> float | None:
    value = run.result.get("chance")
    return round(float(value), 4) if value is not None and is_number(value) else None


def _majority(run: Run, set_name: str) -> float | None:
    confusion = (run.evaluations.get(set_name) or {}).get("confusion")
    counts = [sum(row) for row in confusion] if isinstance(confusion, list) else []
    return round(100 * max(counts) / sum(counts), 4) if counts and sum(counts) else None


def _methods_table(builder: _Builder) -> Table:
    known = {*METHODS, *ABLATION}
    others = [key for key in builder.places if key.label not in known and not key.label.startswith(_ABLATED)]
    rows = builder.labelled(METHODS, 1)
    rows += [builder.row(key, group=1) for key in sorted(others, key=lambda key: key.name)]
    absent = [label for label in METHODS if not builder.keys(label)]
    return builder.table(1, "top-1 by method and shift, all streams fused", rows, absent)


def _ablation_table(builder: _Builder) -> Table | None:
    own = [key for key in builder.places if key.label.startswith(_ABLATED) or key.label == "mmsada (lambda_d 0.5)"]
    if not own:
        return None
    others = [key for key in own if key.label not in ABLATION]
    rows = builder.labelled(ABLATION, 2)
    rows += [builder.row(key, group=1) for key in sorted(others, key=lambda key: key.name)]
    absent = [label for label in ABLATION if not builder.keys(label)]
    return builder.table(2, "ablation of the losses, all streams fused", rows, absent)


def _streams_table(builder: _Builder) -> Table | None:
    evaluated = [run.evaluations.get(builder.options.set_name) or {} for run in builder.finished]
    names = streams({key for row in evaluated for key in row}, "top1_")
    rows: list[Row] = []
    for group, stream in enumerate(names):
        for label in STREAMS:
            keys = builder.keys(label)
            rows += [builder.row(key, f"top1_{stream}", group=group, prefix=f"{stream}: ") for key in keys]
            rows += builder.paper_row(3, stream, label, group=group, prefix=f"{stream}: ")
    if not any(row.origin == "runs" for row in rows):
        return None
    absent = [label for label in STREAMS if not builder.keys(label)]
    return builder.table(3, "single streams of the joint model", rows, absent)


def build_tables(runs: Sequence[Run], options: Options) -> Tables:
    """The tables of `runs` (read without metrics is enough).

    Raises UserError when no finished run evaluated the set, naming those there are.
    """
    builder = _Builder(runs, options)
    sets = dict.fromkeys(name for run in builder.finished for name in run.evaluations)
    if builder.finished and options.set_name not in sets:
        raise UserError(f"--set {options.set_name}: no run was scored on it; there are {', '.join(sets) or 'none'}")
    if not builder.shifts:
        raise UserError("no run names its source and target (config.yaml, result.json): there is nothing to tabulate")
    made = (_methods_table(builder), _ablation_table(builder), _streams_table(builder))
    tables = tuple(table for table in made if table is not None)
    places = {(key.name, shift): builder.at(key, shift) for key in builder.places for shift in builder.shifts}
    adapted = [run for run in builder.finished if not run.is_supervised] if options.paper else []
    reasons = [why for why in dict.fromkeys(map(builder.why_no_paper, adapted)) if why]
    return Tables(tables, notes_on(runs, places, set_name=options.set_name, no_paper=reasons))
