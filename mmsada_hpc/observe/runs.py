"""A run folder, read for looking at it: metrics, result, configuration, starts."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmsada_hpc.errors import UserError
from mmsada_hpc.observe.metrics import METRICS_FILE, read_metrics
from mmsada_hpc.observe.record import read_record
from mmsada_hpc.observe.wording import in_report_order, is_number, joined

Row = dict[str, Any]
RESULT_FILE = "result.json"


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
            "recipe": self.config.get("recipe"),
            "source": data.get("source"),
            "target": data.get("target"),
            "seed": self.config.get("seed"),
        }
        return {**from_config, **self.result}

    @property
    def label(self) -> str:
        """How tables name the method, with the settings that make another row of it: `mmsada (lambda_d 1)`."""
        if self.is_supervised:
            return "supervised_target"
        method = {"name": self.about.get("method"), **_part(self.config, "method")}
        return str(self.about.get("label") or _label(self.config, method))

    @property
    def is_supervised(self) -> bool:
        """Whether it was trained with the labels of its own target, as the upper bar."""
        about = self.about
        if str(about.get("label") or about.get("method")) == "supervised_target":
            return True
        return bool(about.get("target")) and joined(about.get("source")) == joined(about.get("target"))

    @property
    def shift(self) -> str:
        """`D2->D1`; "" where it is not known."""
        about = self.about
        if not about.get("target"):
            return ""
        if self.is_supervised and joined(about.get("source") or about["target"]) == joined(about["target"]):
            return joined(about["target"])
        return f"{joined(about['source'])}->{joined(about['target'])}" if about.get("source") else ""

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


def _label(config: Row, method: Row) -> str:
    """The label of a run whose result.json does not give one: it was not written yet, or by an earlier version."""
    name, test = str(method.get("name") or "unknown method"), _part(_part(config, "model"), "batch_norm").get("test")
    if name == "adabn" and test:
        return f"adabn ({test})"
    if name == "self_supervised" and _part(config, "data").get("positives"):
        return f"self_supervised ({config['data']['positives']})"
    if name in ("adversarial", "mmsada") and is_number(method.get("lambda_d")):
        sync = ", sync" if name == "mmsada" and _part(config, "data").get("positives") == "sync" else ""
        return f"{name} (lambda_d {method['lambda_d']:g}{sync})"
    return name


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


def read_run(path: str | Path, *, name: str | None = None, metrics: bool = True) -> Run:
    """Reads the run folder `path`; without `metrics` the rows of metrics.jsonl, which are many, are left out.

    Raises UserError when there is no such folder or it has no metrics.jsonl.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give the folder of a run (what `run.dir` was set to)")
    rows = sorted(read_metrics(path), key=lambda row: row.get("global_step", 0)) if metrics else []
    config_path = path / "config.yaml"
    text = config_path.read_text(encoding="utf-8", errors="replace") if config_path.is_file() else ""
    return Run(
        path=path,
        name=name or path.resolve().name,
        train=[row for row in rows if row.get("kind") == "train"],
        evals=[row for row in rows if row.get("kind") == "eval"],
        result=_read_json(path / RESULT_FILE),
        config_text=text,
        config=_parse_config(text),
        starts=read_record(path),
    )


def _unique_names(paths: Sequence[Path]) -> list[str]:
    """The shortest end of each path that no other path has."""
    parts = [path.resolve().parts for path in paths]
    names = [""] * len(paths)
    for length in range(1, max(len(part) for part in parts) + 1):
        ends = ["/".join(part[-length:]) for part in parts]
        count = Counter(ends)
        names = [name or (end if count[end] == 1 else "") for name, end in zip(names, ends, strict=True)]
    return [name or str(path) for name, path in zip(names, paths, strict=True)]


def read_runs(paths: Sequence[str | Path], *, metrics: bool = True) -> list[Run]:
    """Reads several run folders, once each even if given twice, and names them so that they can be told apart."""
    unique = list({Path(path).resolve(): Path(path) for path in paths}.values())
    names = _unique_names(unique)
    return [read_run(path, name=name, metrics=metrics) for path, name in zip(unique, names, strict=True)]


def _run_folders(top: Path) -> Iterator[Path]:
    """Folders at or below `top` that hold a result or metrics; a run's own folders are not searched."""
    for folder, inner, files in os.walk(top):
        if RESULT_FILE in files or METRICS_FILE in files:
            inner.clear()
            yield Path(folder)
        inner.sort()


def find_runs(paths: Sequence[str | Path]) -> list[Path]:
    """Run folders among and below `paths`, at any depth.

    Raises UserError for a path that is no folder or holds no run.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            raise UserError(f"{path}: no such folder; give a run (what `run.dir` was set to) or a folder of runs")
        inside = list(_run_folders(path))
        if not inside:
            raise UserError(f"{path}: no run in it (no {RESULT_FILE} or {METRICS_FILE}); give a folder of runs")
        found += inside
    return found
