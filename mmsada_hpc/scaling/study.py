"""A study in one small YAML: a base config, recipes, and parts, each a product of axes (configs/study/example.yaml)."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mmsada_hpc.config import Config, deciding_values, find_config, load_config
from mmsada_hpc.config_keys import dotted_keys
from mmsada_hpc.errors import UserError
from mmsada_hpc.scaling.cells import Cell, Study
from mmsada_hpc.scaling.refusals import why_refused
from mmsada_hpc.scaling.shapes import shapes_of, why_not_split

_DECIDED = {
    "run.dir": "folder",
    "seed": "the axis seed",
    "train.global_batch": "the axes micro_batch, accumulation and global_batch",
    "train.micro_batch": "the axis micro_batch",
    "train.base_batch": "base_batch",
    "train.lr_rule": "the axis rule",
    "train.lengths": "hold",
}
"""Keys of the config that a study sets itself, and by what."""


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


Counts = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_listed)]
Rules = Annotated[tuple[Literal["fixed", "linear", "sqrt"], ...], BeforeValidator(_listed)]
Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_listed)]


class _Part(BaseModel):
    """Axes; a single value may stand for a list."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    nodes: Counts = (1,)
    tasks_per_node: Counts = (1,)
    micro_batch: Counts = ()
    accumulation: Counts = ()
    global_batch: Counts = ()
    optimizer: Names = ()
    rule: Rules = ("fixed",)
    seed: Seeds = (0,)


class _StudyFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    base: Path
    folder: Path
    cluster: str = "local"
    base_batch: int = Field(ge=1)
    hold: Literal["samples", "updates"] = "samples"
    whole_passes: bool = False
    """Also batches of more clips than a domain has segments, which then hold a segment more than once."""
    set: dict[str, Any] = {}
    optimizers: dict[str, dict[str, Any]] = Field(min_length=1)
    parts: dict[str, _Part] = Field(min_length=1)


def read_study(path: Path, overrides: Sequence[str] = (), *, only: str = "", cluster: str | None = None) -> Study:
    """Every cell of a study file, each config loaded and checked; a cell that cannot run says why in `refused`.

    Args:
        overrides: `key=value` for every cell, over what the study says.
        only: keep the cells whose name has this in it.
        cluster: in place of the study's.

    Raises:
        UserError: names the file and what in it is wrong.
    """
    file = _read(path)
    _check(path, file, overrides)
    study = Study(path, file.base, file.folder, file.base_batch, cluster or file.cluster, (), file.hold)
    cells = _merged(_cells(study, file, overrides), file.base_batch)
    chosen = [cell for cell in cells if only in cell.name]
    if not chosen:
        raise UserError(f"{path}: no cell with {only!r} in its name; the first is {cells[0].name}")
    refuse = why_refused(study.cluster, whole_passes=file.whole_passes)
    return replace(study, cells=tuple(replace(cell, refused=cell.refused or refuse(cell)) for cell in chosen))


def _read(path: Path) -> _StudyFile:
    try:
        found = find_config(path)
    except UserError:
        raise UserError(f"{path}: no such study file, nor one of that name in configs/") from None
    try:
        return _StudyFile.model_validate(yaml.safe_load(found.read_text()))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{found}: not valid YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{found}: {where}: {first['msg']}; a study has base, folder, base_batch, optimizers and parts, and may "
            f"have cluster, hold, whole_passes and set; the axes of a part are {', '.join(_Part.model_fields)}"
        ) from None


def _check(path: Path, file: _StudyFile, overrides: Sequence[str]) -> None:
    """What is wrong for all cells."""
    try:
        load_config(file.base)
    except UserError as error:
        raise UserError(f"{path}: base: {error}") from None
    groups = {"set": list(file.set), **{f"optimizers.{name}": list(keys) for name, keys in file.optimizers.items()}}
    groups["the command line"] = [word.partition("=")[0] for word in overrides]
    known = set(dotted_keys(Config))
    for where, keys in groups.items():
        for key in keys:
            _check_key(f"{path}: {where}", key, known)
    for name, part in file.parts.items():
        _check_part(f"{path}: parts.{name}", part, file.optimizers)


def _check_key(where: str, key: str, known: set[str]) -> None:
    if key in _DECIDED:
        raise UserError(f"{where}: {key} is set by {_DECIDED[key]} of a study, for each cell")
    if key not in known and not any(key.startswith(f"{mapping}.") for mapping in ("data.streams",)):
        load_config(None, [f"{key}=null"])  # which names the nearest key
        raise UserError(f"{where}: {key}: not a key of the config; `mmsada config --explain` lists them")


def _check_part(where: str, part: _Part, optimizers: Mapping[str, Any]) -> None:
    for axis in type(part).model_fields:
        values = getattr(part, axis)
        if axis in part.model_fields_set and not values:
            raise UserError(f"{where}: {axis} is empty")
        twice = [value for value, count in Counter(values).items() if count > 1]
        if twice:
            raise UserError(f"{where}: {axis}: {twice[0]} is there twice; two cells would have one folder")
    given = [axis for axis in ("micro_batch", "accumulation", "global_batch") if getattr(part, axis)]
    if given == ["micro_batch", "accumulation", "global_batch"]:
        raise UserError(f"{where}: micro_batch, accumulation and global_batch are too many: leave one of them out")
    if "micro_batch" not in given and "global_batch" not in given:
        raise UserError(f"{where}: give micro_batch (weak scaling) or global_batch (strong scaling)")
    if not part.optimizer and len(optimizers) > 1:
        raise UserError(f"{where}: optimizer: name one or more of {', '.join(optimizers)}")
    for name in part.optimizer:
        if name not in optimizers:
            raise UserError(f"{where}: optimizer: {name} is not among optimizers ({', '.join(optimizers)})")


def _cells(study: Study, file: _StudyFile, overrides: Sequence[str]) -> Iterator[Cell]:
    for part_name, part in file.parts.items():
        optimizers = part.optimizer or tuple(file.optimizers)
        for shape, optimizer, rule, seed in product(shapes_of(part), optimizers, part.rule, part.seed):
            decided = {
                "train.global_batch": shape.global_batch,
                "train.micro_batch": shape.micro_batch or None,
                "train.base_batch": file.base_batch,
                "train.lr_rule": rule,
                "train.lengths": file.hold,
                "seed": seed,
            }
            changes = {**file.set, **file.optimizers[optimizer], **decided}
            name = f"{part_name}/{shape}/{optimizer}-{rule}/{seed}"
            words = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
            config, used, refused = _config(study, (*words, *overrides, f"run.dir={study.folder / name}"))
            if refused is None and not shape.splits:
                refused = why_not_split(shape, config)
            yield Cell(
                name=name,
                part=part_name,
                nodes=shape.nodes,
                tasks_per_node=shape.tasks_per_node,
                micro_batch=shape.micro_batch,
                accumulation=shape.accumulation,
                global_batch=shape.global_batch,
                optimizer=optimizer,
                rule=rule,
                seed=seed,
                config=config,
                overrides=used,
                refused=refused,
            )


def _config(study: Study, words: tuple[str, ...]) -> tuple[Config, tuple[str, ...], str | None]:
    """A cell's config and its words, or the base's and none with what forbids the cell's own."""
    try:
        return load_config(study.base, words), words, None
    except UserError as error:
        return load_config(study.base, words[-1:]), (), str(error)


def _merged(cells: Iterable[Cell], base_batch: int) -> list[Cell]:
    """Each run once, under the name that comes first. At the base batch every rule gives the same rate."""
    found: dict[str, Cell] = {}
    for cell in cells:
        key = cell.name if not cell.overrides else _identity(cell, base_batch)
        first = found.setdefault(key, cell)
        if first is not cell:
            found[key] = replace(first, also=(*first.also, cell.name))
    return list(found.values())


def _identity(cell: Cell, base_batch: int) -> str:
    """Equal for cells that are one run."""
    values = deciding_values(cell.config)
    if cell.global_batch == base_batch:
        values["train"]["lr_rule"] = "fixed"
    shape = (cell.nodes, cell.tasks_per_node, cell.micro_batch, cell.accumulation, cell.global_batch)
    return json.dumps([shape, values], sort_keys=True)
