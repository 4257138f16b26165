"""What `mmsada scale validate` compares, named before it is measured (configs/study/validation.yaml)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmsada_hpc.config import find_config
from mmsada_hpc.errors import UserError

Precision = Literal["fp32", "bf16"]
_Count = Annotated[int, Field(ge=1)]
_Ranks = Annotated[int, Field(ge=2)]


class LinkShape(BaseModel):
    """Of every node's port, each way."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    rate_mbit: float = Field(gt=0)
    """10^6 bits a second."""
    delay_ms: float = Field(ge=0)
    """One way from node to node."""


class FitCells(BaseModel):
    """The cells that the model is fitted to: every link with every number of ranks and clips."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    links: tuple[str, ...] = Field(min_length=1)
    ranks: tuple[_Ranks, ...] = Field(min_length=1)
    clips: tuple[_Count, ...] = Field(min_length=1)


class Validation(BaseModel):
    """A campaign: every link with every number of ranks, clips and precision, each one job of all engines."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    folder: Path
    links: dict[str, LinkShape] = Field(min_length=1)
    ranks: tuple[_Ranks, ...] = Field(min_length=1)
    clips: tuple[_Count, ...] = Field(min_length=1)
    precisions: tuple[Precision, ...] = ("fp32",)
    engines: tuple[str, ...] = Field(min_length=1)
    sizes: tuple[str, ...] = Field(min_length=1)
    """Messages of the all-reduce, as `bench comm --sizes` takes them."""
    steps: _Count = 3
    repeats: _Count = 3
    fit: FitCells

    @property
    def cells(self) -> "list[Measurement]":
        """All jobs of the engines, in the file's order."""
        return [
            Measurement(link, ranks, clips, precision)
            for link in self.links
            for ranks in self.ranks
            for clips in self.clips
            for precision in self.precisions
        ]

    def engines_file(self, cell: "Measurement") -> Path:
        """Rows of `bench comm --part engines`."""
        return self.folder / cell.link / f"r{cell.ranks}-c{cell.clips}-{cell.precision}.jsonl"

    def all_reduce_file(self, link: str, ranks: int) -> Path:
        """Rows of `bench comm --part all-reduce`."""
        return self.folder / link / f"r{ranks}-allreduce.jsonl"

    def is_fitted(self, cell: "Measurement") -> bool:
        """Whether the model may see it."""
        fit = self.fit
        return cell.link in fit.links and cell.ranks in fit.ranks and cell.clips in fit.clips


@dataclass(frozen=True)
class Measurement:
    """One job: all engines on one link with so many ranks and clips."""

    link: str
    ranks: int
    clips: int
    """Of a rank and step."""
    precision: Precision


def read_validation(path: Path) -> Validation:
    """A campaign from its file, or from a name in configs/.

    Raises:
        UserError: names the file and what in it is wrong.
    """
    try:
        found = find_config(path)
    except UserError:
        raise UserError(f"{path}: no such file, nor one of that name in configs/") from None
    try:
        validation = Validation.model_validate(yaml.safe_load(found.read_text()))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{found}: not valid YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{found}: {where}: {first['msg']}; configs/study/validation.yaml has every key") from None
    _check(found, validation)
    return validation


def _check(path: Path, validation: Validation) -> None:
    named: Mapping[str, tuple[tuple[object, ...], tuple[object, ...]]] = {
        "links": (validation.fit.links, tuple(validation.links)),
        "ranks": (validation.fit.ranks, validation.ranks),
        "clips": (validation.fit.clips, validation.clips),
    }
    for key, (chosen, all_of_them) in named.items():
        for one in chosen:
            if one not in all_of_them:
                raise UserError(f"{path}: fit.{key}: {one} is none of {key}: {', '.join(map(str, all_of_them))}")
    predicted = [cell for cell in validation.cells if not validation.is_fitted(cell)]
    if 2 * len(predicted) < len(validation.cells):
        few = f"{len(predicted)} of {len(validation.cells)} cells are left to predict"
        raise UserError(f"{path}: fit: {few}; fit to fewer, so that at least half are")
