"""What a table's numbers do not say: missing and unfinished runs, mixed settings, repeated seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmsada_hpc.observe.cells import mixture, repeated, score_of, seed_of
from mmsada_hpc.observe.runs import Run
from mmsada_hpc.observe.settings import differing, settings_of, who_has_what

Places = Mapping[tuple[str, str], Sequence[Run]]
"""The runs, finished or not, by (row, shift)."""

# They differ by design between the rows and columns of one table.
_OF_THE_ROW = ("method.", "data.source", "data.target", "data.positives", "model.batch_norm.test", "recipe")


@dataclass(frozen=True)
class Missing:
    """A place with fewer seeds than there are anywhere in the tables."""

    row: str
    shift: str
    found: int
    expected: int

    def __str__(self) -> str:
        return f"{self.row} {self.shift} ({self.found} of {self.expected} seed{'' if self.expected == 1 else 's'})"


@dataclass(frozen=True)
class TableNotes:
    """`reading` says how to read the numbers, `warnings` what is wrong with them; both are whole sentences."""

    seeds: tuple[int, ...]
    reading: tuple[str, ...]
    missing: tuple[Missing, ...]
    warnings: tuple[str, ...]

    @property
    def lines(self) -> list[str]:
        """All of it, a line each; the missing seeds of one row share a line."""
        rows: dict[str, list[str]] = {}
        for place in self.missing:
            rows.setdefault(place.row, []).append(str(place).removeprefix(f"{place.row} "))
        missing = [f"missing: {row} {', '.join(places)}" for row, places in rows.items()]
        return [*self.reading, *missing, *self.warnings]


def _seeds_here(runs: Sequence[Run], set_name: str) -> set[int]:
    value = score_of("top1", set_name)
    return {seed_of(run) for run in runs if run.is_finished and value(run) is not None}


def _reading(runs: Sequence[Run], seeds: Sequence[int], set_name: str, *, several_shifts: bool) -> list[str]:
    recipes = dict.fromkeys(str(run.about["recipe"]) for run in runs if run.about.get("recipe"))
    lines = [f"top-1 in percent on {set_name}" + (f", {next(iter(recipes))} recipe" if len(recipes) == 1 else "")]
    if len(seeds) > 1:
        lines[0] += (
            f"; mean ± sample standard deviation (n - 1) over n = {len(seeds)} seeds ({', '.join(map(str, seeds))}) "
            "unless (n=...) says otherwise, no ± where n = 1"
        )
        lines[0] += "; the mean's ± is over the seeds' own means" if several_shifts else ""
    elif seeds:
        lines[0] += f"; one seed ({seeds[0]}), so no spread"
    averaged = {tuple(run.result["checkpoints"]) for run in runs if run.result.get("checkpoints")}
    if averaged and set_name == "target/test":
        steps = ", ".join(map(str, max(averaged)))
        lines.append(
            f"fused top-1 is a run's mean over the checkpoints of stage-2 steps {steps}; "
            "streams and recall are of the last step"
        )
    return lines


def _warnings(runs: Sequence[Run], places: Places, set_name: str) -> list[str]:
    lines = []
    unfinished = [run.name for run in runs if not run.is_finished]
    if unfinished:
        lines.append(f"unfinished (no result.json), not counted: {', '.join(unfinished)}")
    finished = [run for run in runs if run.is_finished]
    unscored = [run.name for run in finished if score_of("top1", set_name)(run) is None]
    if unscored:
        lines.append(f"not scored on {set_name}, not counted: {', '.join(unscored)}")
    unplaced = [run.name for run in runs if not run.shift]
    if unplaced:
        lines.append(f"source and target not known, not counted: {', '.join(unplaced)}")
    unknown = [run.name for run in finished if not run.config]
    if unknown:
        lines.append(f"settings not compared (no readable config.yaml): {', '.join(unknown)}")
    for (row, shift), here in places.items():
        counted = [run for run in here if run.is_finished and run.name not in unscored]
        why = mixture(counted, set_name=set_name)
        if why:
            lines.append(f"mixed settings, no mean: {row} {shift}: {why}")
            continue
        lines += [
            f"seed {seed} more than once: {row} {shift}: {', '.join(names)}; only {names[0]} is counted"
            for seed, names in repeated(counted)
        ]
    return list(dict.fromkeys(lines)) + _between_rows(finished)


def _between_rows(runs: Sequence[Run]) -> list[str]:
    """Settings apart from the method's own that are not the same in all runs: rows then differ by more than method."""
    configured = [run for run in runs if run.config]
    keys = [key for key in differing([settings_of(run) for run in configured]) if not key.startswith(_OF_THE_ROW)]
    return [f"not the same in all runs: {key}: {who_has_what(configured, key)}" for key in keys]


def notes_on(runs: Sequence[Run], places: Places, *, set_name: str, no_paper: Sequence[str]) -> TableNotes:
    """The notes of tables whose runs lie in `places`; `no_paper` are the reasons to print no figures of the paper."""
    seeds = sorted({seed_of(run) for run in runs})
    missing = []
    for (row, shift), here in places.items():
        found = len(_seeds_here(here, set_name))
        if found < len(seeds):
            missing.append(Missing(row, shift, found, len(seeds)))
    several_shifts = len({shift for _, shift in places}) > 1
    reading = _reading(runs, seeds, set_name, several_shifts=several_shifts)
    warnings = _warnings(runs, places, set_name)
    warnings += [f"no figures of the paper beside: {why}" for why in no_paper]
    return TableNotes(tuple(seeds), tuple(reading), tuple(missing), tuple(warnings))
