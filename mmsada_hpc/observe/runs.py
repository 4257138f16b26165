"""A run folder, read for looking at it: metrics, result, configuration, starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmsada_hpc.errors import UserError
from mmsada_hpc.observe.metrics import read_metrics
from mmsada_hpc.observe.record import read_record
from mmsada_hpc.observe.wording import in_report_order

Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One run folder.

    name         short, unique among the runs read together
    train, evals rows of metrics.jsonl by kind, in order of global step
    result       result.json; {} while the run is not finished
    config_text  config.yaml as written; "" where there is none
    config       the same, parsed; {} where it cannot be
    starts       run.json, one entry a (re)start
    """

    path: Path
    name: str
    train: list[Row]
    evals: list[Row]
    result: Row
    config_text: str
    config: Row
    starts: list[Row]

    @property
    def about(self) -> Row:
        """`result`, or what the configuration says of the same things while there is no result yet."""
        method, data = (_part(self.config, key) for key in ("method", "data"))
        from_config = {
            "method": method.get("name"),
            "recipe": method.get("recipe"),
            "source": data.get("source"),
            "target": data.get("target"),
            "seed": self.config.get("seed"),
        }
        return {**from_config, **self.result}

    @property
    def evaluations(self) -> dict[str, Row]:
        """The final evaluations by name of the set; of an unfinished run, the latest of each set so far."""
        final = self.result.get("evaluations")
        return final if isinstance(final, dict) else {str(row.get("set")): row for row in self.evals}

    @property
    def target_set(self) -> str | None:
        """Name of the evaluated set that the run is judged by."""
        targets = [name for name in in_report_order(self.evaluations) if name.startswith("target")]
        return targets[0] if targets else None

    @property
    def is_finished(self) -> bool:
        """Whether the run wrote its result."""
        return bool(self.result)


def _part(config: Row, key: str) -> Row:
    value = config.get(key)
    return value if isinstance(value, dict) else {}


def _read_json(path: Path) -> Row:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); evaluate the run again or remove the file") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object; evaluate the run again or remove the file")
    return value


def _parse_config(text: str) -> Row:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}  # the page shows the text itself, so nothing is hidden
    return value if isinstance(value, dict) else {}


def read_run(path: str | Path, *, name: str | None = None) -> Run:
    """Reads the run folder `path`. Raises UserError when there is no such folder or it has no metrics.jsonl."""
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give the folder of a run (what `run.dir` was set to)")
    rows = sorted(read_metrics(path), key=lambda row: row.get("global_step", 0))
    config_path = path / "config.yaml"
    text = config_path.read_text(encoding="utf-8", errors="replace") if config_path.is_file() else ""
    return Run(
        path=path,
        name=name or path.resolve().name,
        train=[row for row in rows if row.get("kind") == "train"],
        evals=[row for row in rows if row.get("kind") == "eval"],
        result=_read_json(path / "result.json"),
        config_text=text,
        config=_parse_config(text),
        starts=read_record(path),
    )


def _unique_names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(len(part) for part in parts) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def read_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Reads several run folders, once each even if given twice, and names them so that they can be told apart."""
    unique = list({Path(path).resolve(): Path(path) for path in paths}.values())
    names = _unique_names(unique)
    return [read_run(path, name=name) for path, name in zip(unique, names, strict=True)]
