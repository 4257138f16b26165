"""A grid of runs in one small YAML: every combination of named changes to one base config.

base: demo.yaml                        # a config, as --config takes it
folder: runs/toy_table                 # the runs are FOLDER/SHIFT/METHOD/SEED, in the order of the axes
set: {data.store: stores/toy}          # keys of every run
axes:
  shift:                               # name -> keys of the config
    K1-K2: {data.source: [K1], data.target: [K2]}
  method:
    mmsada: {method.name: mmsada}
  seed: [0, 1, 2]                      # a list: values of the key of that name
"""

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from mmsada_hpc.config import Config, find_config, load_config
from mmsada_hpc.config_keys import dotted_keys
from mmsada_hpc.errors import UserError
from mmsada_hpc.observe.runs import RESULT_FILE
from mmsada_hpc.submit.run_folder import CONFIG_FILE, differences

Changes = Mapping[str, Any]


class _GridFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    base: Path
    folder: Path
    set: dict[str, Any] = {}
    axes: dict[str, dict[str, dict[str, Any]] | list[Any]]


@dataclass(frozen=True)
class GridRun:
    """One run of a grid."""

    name: str
    """Its place on every axis, `K1-K2/mmsada/0`."""
    overrides: tuple[str, ...]
    """What it changes in the base config, `key=value`, its run folder included."""
    config: Config

    @property
    def result(self) -> dict[str, Any] | None:
        """What its result.json holds; None while it is not finished.

        Raises:
            UserError: the file is damaged, or was written by a run with other settings.
        """
        path = self.config.run.dir / RESULT_FILE
        if not path.is_file():
            return None
        had = path.with_name(CONFIG_FILE)
        if had.is_file() and differences(load_config(had), self.config):
            raise UserError(
                f"{path.parent} holds a finished run with other settings (its config.yaml tells which): choose another "
                f"folder in the grid, or remove that one"
            )
        try:
            found: dict[str, Any] = json.loads(path.read_text())
            return found
        except ValueError:
            raise UserError(f"{path}: damaged; remove it, and the run goes on from its checkpoints") from None

    @property
    def is_begun(self) -> bool:
        return (self.config.run.dir / "checkpoints" / "latest").is_file()


@dataclass(frozen=True)
class Grid:
    """All runs of one file, in the order of its axes: the last one changes fastest."""

    path: Path
    base: Path
    folder: Path
    runs: tuple[GridRun, ...]


def is_grid(path: Path) -> bool:
    """Whether a YAML describes a grid rather than one run."""
    values = _read(path)
    return isinstance(values, dict) and "axes" in values


def read_grid(path: Path, overrides: Sequence[str] = (), *, only: str = "") -> Grid:
    """Every run of a grid file, each config loaded and checked.

    Args:
        overrides: `key=value` for every run, over what the grid says.
        only: keep the runs whose name has this in it.

    Raises:
        UserError: names the file and the axis, entry or key that is wrong.
    """
    try:
        file = _GridFile.model_validate(_read(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][:2])
        raise UserError(
            f"{path}: {where}: {first['msg']}; a grid has base, folder and axes (name -> changes)"
        ) from None
    axes = [_entries(path, axis, entries) for axis, entries in file.axes.items()]
    runs = [_run(path, file, overrides, combination) for combination in itertools.product(*axes)]
    chosen = tuple(run for run in runs if only in run.name)
    if not chosen:
        raise UserError(f"{path}: no run with {only!r} in its name; the first is {runs[0].name}")
    return Grid(path, file.base, file.folder, chosen)


def _read(path: Path) -> Any:
    found = find_config(path)
    try:
        return yaml.safe_load(found.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{found}: not valid YAML: {' '.join(str(error).split())}") from None


def _entries(path: Path, axis: str, entries: Mapping[str, Changes] | Sequence[Any]) -> list[tuple[str, Changes]]:
    if not entries:
        raise UserError(f"{path}: axes.{axis} is empty")
    if isinstance(entries, Mapping):
        return list(entries.items())
    if axis not in dotted_keys(Config):
        raise UserError(f"{path}: axes.{axis}: a list gives values of a config key, and {axis} is none")
    named: list[tuple[str, Changes]] = [(str(value), {axis: value}) for value in entries]
    twice = [name for name, count in Counter(name for name, _ in named).items() if count > 1]
    if twice:
        raise UserError(f"{path}: axes.{axis}: {twice[0]} is there twice; two runs would have one folder")
    return named


def _run(path: Path, file: _GridFile, overrides: Sequence[str], combination: Sequence[tuple[str, Changes]]) -> GridRun:
    name = "/".join(entry for entry, _ in combination)
    every = [file.set, *(changes for _, changes in combination)]
    changed = [f"{key}={json.dumps(value)}" for changes in every for key, value in changes.items()]
    words = (*changed, *overrides, f"run.dir={file.folder / name}")
    try:
        return GridRun(name, words, load_config(file.base, words))
    except UserError as error:
        raise UserError(f"{path}: {name}: {error}") from None
