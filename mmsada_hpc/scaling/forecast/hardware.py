"""A cluster from public figures (configs/hardware/*.yaml): each with its source, none of them measured here."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmsada_hpc.config import find_config
from mmsada_hpc.errors import UserError
from mmsada_hpc.scaling.forecast.compute import Compute
from mmsada_hpc.scaling.forecast.forecast import Inputs, Known
from mmsada_hpc.scaling.forecast.goodput import Failures
from mmsada_hpc.scaling.forecast.nets import full_size
from mmsada_hpc.scaling.forecast.network import Link, Network

_SIGMAS = 1.6449
"""Of a normal number to the end of an interval of nine in ten."""
DRAWS = 400
_FIGURES = 7


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LinkFigures(_Figures):
    """Of one class of link."""

    GB_s: float = Field(gt=0)
    """10^9 bytes a second that a message gets, each way."""
    latency_us: float = Field(ge=0)
    within: float = Field(ge=1)
    """Nine times of ten both are within this factor."""
    source: str


class ComputeFigures(_Figures):
    """Of one rank."""

    clips_per_s: float = Field(gt=0)
    micro_batch: int = Field(ge=1)
    spread: float = Field(ge=0)
    """Standard deviation of a rank's step over its mean."""
    spread_within: float = Field(ge=1)
    within: float = Field(ge=1)
    """Of the rate."""
    source: str


class LoaderFigures(_Figures):
    """Of one node."""

    clips_per_s_core: float = Field(gt=0)
    cores: int = Field(ge=1)
    within: float = Field(ge=1)
    source: str


class FailureFigures(_Figures):
    """Of one node, and of a job."""

    mtbf_hours: float = Field(gt=0)
    checkpoint_s: float = Field(gt=0)
    restart_s: float = Field(ge=0)
    within: float = Field(ge=1)
    source: str


class Hardware(_Figures):
    """A cluster of equal nodes."""

    name: str
    ranks_per_node: int = Field(ge=1)
    inside: LinkFigures
    """Between two ranks of a node."""
    between: LinkFigures
    """Between two nodes, all ports together."""
    compute: ComputeFigures
    loader: LoaderFigures | None = None
    failures: FailureFigures | None = None


def read_hardware(path: Path) -> Hardware:
    """From a file, or from a name in configs/ or configs/hardware/.

    Raises:
        UserError: names the file and what in it is wrong.
    """
    found = _find(path)
    try:
        return Hardware.model_validate(yaml.safe_load(found.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{found}: not valid YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{found}: {where}: {first['msg']}; configs/hardware/h100_ib.yaml has every key") from None


def _find(path: Path) -> Path:
    for candidate in (path, Path("hardware") / path):
        try:
            return find_config(candidate)
        except UserError:
            continue
    raise UserError(f"--hardware {path}: no such file, nor one of that name in configs/hardware/")


def known_of(hardware: Hardware, *, seed: int = 0) -> Known:
    """Its figures, and draws within the factors that the file gives."""
    generator = np.random.default_rng(seed)
    draws = [_inputs(hardware, list(generator.standard_normal(_FIGURES) / _SIGMAS)) for _ in range(DRAWS)]
    return Known(_inputs(hardware, [0.0] * _FIGURES), draws, _sources(hardware))


def _inputs(hardware: Hardware, z: Sequence[float]) -> Inputs:
    """With each figure so many of its factors off: 1 is the end of what is within nine times of ten."""
    compute = hardware.compute
    rate = compute.clips_per_s * compute.within ** z[0]
    loader, failures = hardware.loader, hardware.failures
    return Inputs(
        full_size(),
        Compute({compute.micro_batch: compute.micro_batch / rate}, compute.spread * compute.spread_within ** z[1]),
        Network(between=_link(hardware.between, z[2], z[4]), inside=_link(hardware.inside, z[3], z[4])),
        loader.clips_per_s_core * loader.cores * loader.within ** z[5] if loader else None,
        Failures(3600 * failures.mtbf_hours * failures.within ** z[6], failures.checkpoint_s, failures.restart_s)
        if failures
        else None,
    )


def _link(figures: LinkFigures, z_rate: float, z_latency: float) -> Link:
    rate = figures.GB_s * 1e9 * figures.within**z_rate
    return Link(figures.latency_us * 1e-6 * figures.within**z_latency, 1 / rate)


def _sources(hardware: Hardware) -> list[str]:
    parts = ("compute", "inside", "between", "loader", "failures")
    figures = {part: getattr(hardware, part) for part in parts}
    return [f"{part}: not measured: {one.source}" for part, one in figures.items() if one is not None]
