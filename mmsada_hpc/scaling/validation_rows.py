"""What was measured for `mmsada scale validate`, from the rows that `bench comm` wrote."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsada_hpc.errors import UserError
from mmsada_hpc.scaling.forecast.shaped import Reduced
from mmsada_hpc.scaling.validation_file import Measurement, Validation

SILENT = "no communication"
_HOW = "python -m tests.cluster.measure_links"


@dataclass(frozen=True)
class Step:
    """A measured training step, seconds."""

    median_s: float
    min_s: float
    max_s: float
    repeats: int


@dataclass(frozen=True)
class Job:
    """One job of the campaign."""

    cell: Measurement
    compute: Step
    """The step without communication, which the forecast is given."""
    steps: Mapping[str, Step]
    """Of each engine."""
    cores: int
    """Of the machine that all ranks share."""
    width: float
    frames: int
    side: int


def read_job(validation: Validation, cell: Measurement) -> Job:
    """The rows of one cell.

    Raises:
        UserError: they are not there, or not whole.
    """
    path = validation.engines_file(cell)
    rows = [row for row in read_lines(path) if row["bench"] == "comm" and "engine" in row.get("details", {})]
    steps = {
        str(row["details"]["engine"]): Step(row["value"] / 1e3, row["min"] / 1e3, row["max"] / 1e3, row["repeats"])
        for row in rows
    }
    missing = [name for name in (SILENT, *validation.engines) if name not in steps]
    if missing:
        raise UserError(f"{path}: no row of {missing[0]!r}; measure it: {_HOW}")
    shape = re.search(r" (\d+)x(\d+)x\d+,", str(rows[0]["name"]))
    if shape is None:
        raise UserError(f"{path}: {rows[0]['name']!r} is no row of bench comm --part engines")
    return Job(
        cell,
        steps[SILENT],
        {name: steps[name] for name in validation.engines},
        cores_of(rows[0], path),
        float(rows[0]["details"]["width"]),
        int(shape[1]),
        int(shape[2]),
    )


def read_reduced(validation: Validation, link: str, ranks: int) -> list[Reduced]:
    """gloo's all-reduces of one link and number of ranks.

    Raises:
        UserError: they are not there.
    """
    path = validation.all_reduce_file(link, ranks)
    found = [
        Reduced(validation.links[link], ranks, float(row["details"]["bytes"]), row["value"] / 1e3)
        for row in read_lines(path)
        if row["bench"] == "comm" and row.get("details", {}).get("way") == "gloo"
    ]
    if not found:
        raise UserError(f"{path}: no all-reduce over gloo; measure it: {_HOW}")
    return found


def read_lines(path: Path) -> Sequence[dict[str, Any]]:
    """JSON lines of `mmsada bench`.

    Raises:
        UserError: names the file.
    """
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; measure it: {_HOW}") from None
    except ValueError:
        raise UserError(f"{path}: not rows of mmsada bench --json") from None
    if not rows or not all(isinstance(row, dict) and {"bench", "name", "value"} <= row.keys() for row in rows):
        raise UserError(f"{path}: not rows of mmsada bench --json")
    return rows


def cores_of(row: Mapping[str, Any], path: Path) -> int:
    """Of the machine in a row."""
    found = re.search(r"(\d+) cores?$", str(row.get("machine", "")))
    if found is None:
        raise UserError(f"{path}: a row without its machine's cores")
    return int(found[1])
