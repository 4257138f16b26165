"""A cluster in one YAML (configs/cluster): what a job asks for and what must be set up on its nodes."""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmsada_hpc.config import config_folder
from mmsada_hpc.errors import UserError


class Profile(BaseModel):
    """Every key a profile may set; the command line's flags go over them."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    executor: Literal["slurm", "local", "debug"]
    """slurm queues with sbatch, local starts processes on this host, debug runs one rank in this very process."""
    nodes: int = Field(default=1, ge=1)
    """Hosts."""
    tasks_per_node: int = Field(default=1, ge=1)
    """Ranks on each host, one per GPU where there are GPUs."""
    cpus_per_task: int | None = Field(default=None, ge=1)
    """Cores of each rank, for decoding too."""
    gpus_per_node: int | None = Field(default=None, ge=0)
    """GPUs of each host; unset = Slurm: none asked for, local: those in sight."""
    mem_gb: float | None = Field(default=None, gt=0)
    """Memory of each host."""
    minutes: int = Field(default=1440, ge=1)
    """Time limit. Slurm requeues a job that reaches it, and the run goes on from its last checkpoint."""
    max_num_timeout: int | None = Field(default=None, ge=0)
    """Time limits a job may reach before it is left to end; unset = submitit's 3."""
    signal_delay_s: int = Field(default=120, ge=10)
    """Seconds between the warning signal and the time limit: room to write a checkpoint."""
    partition: str | None = None
    """Slurm partition."""
    account: str | None = None
    """Whom Slurm bills."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Node features, for instance `h100`."""
    dependency: str | None = None
    """Which jobs must come first, as `sbatch --dependency` takes it: `afterok:123`."""
    requeue: bool = True
    """Whether a job that is preempted, or near its time limit, goes back to the queue by itself."""
    exclusive: bool = False
    """Whether to take whole hosts."""
    wckey: str | None = None
    """Slurm's workload key; many clusters refuse any."""
    interface: str | None = None
    """Network interface between the hosts, for gloo and NCCL."""
    modules: tuple[str, ...] = ()
    """Environment modules, loaded in this order before `setup`."""
    setup: tuple[str, ...] = ()
    """Shell lines before srun, such as `export ...`."""
    container: tuple[str, ...] = ()
    """Arguments of srun that start every rank in a container: `--container-image=...`, `--container-mounts=...`."""
    srun_args: tuple[str, ...] = ()
    """More arguments for srun."""
    sbatch: dict[str, str | int | bool] = Field(default_factory=dict)
    """More `#SBATCH --key=value` lines."""
    python: str | None = None
    """Shell command of the Python on the nodes; unset = the one that submits."""

    @property
    def world_size(self) -> int:
        """Ranks of a job."""
        return self.nodes * self.tasks_per_node


def load_profile(name: str, flags: Mapping[str, Any] | None = None) -> Profile:
    """Read a profile and put the command line over it.

    Args:
        name: of a YAML in configs/cluster, or a path to one.
        flags: keys that replace the profile's; None values are left out.

    Raises:
        UserError: no such profile, or a key or value that is not one.
    """
    path = _find(name)
    return build_profile(_read(path), flags, path=path)


def build_profile(values: Mapping[str, Any], flags: Mapping[str, Any] | None = None, *, path: Path) -> Profile:
    """Check a profile that was read from `path`, flags over it.

    Raises:
        UserError: a key or value that is not one.
    """
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    try:
        profile = Profile.model_validate({**values, **given})
    except ValidationError as error:
        raise UserError("; ".join(_explain(path, dict(e)) for e in error.errors())) from None
    _check_together(profile, path)
    return profile


def parse_minutes(text: str) -> int:
    """A time limit as Slurm writes it: minutes, HH:MM:SS or D-HH[:MM[:SS]] -> minutes, rounded up."""
    if re.fullmatch(r"\d+", text):
        return int(text)
    match = re.fullmatch(r"(?:(\d+)-(?=\d))?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None or (match[1] is None and match[4] is None):
        raise UserError(f"--time {text}: write minutes, HH:MM:SS or D-HH:MM:SS")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return (days * 24 + hours) * 60 + minutes + (seconds > 0)


def parse_gb(text: str) -> float:
    """Memory as Slurm writes it, `512000M`, `500G`, `2T`, or a bare number of GB -> GB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([MGT]?)B?", text.upper())
    if match is None:
        raise UserError(f"--mem {text}: write gigabytes, or a number with M, G or T")
    return float(match[1]) * {"M": 1 / 1024, "T": 1024.0}.get(match[2], 1.0)


def _find(name: str) -> Path:
    folder = config_folder() / "cluster"
    for candidate in (folder / f"{name}.yaml", Path(name)):
        if candidate.is_file():
            return candidate
    known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    raise UserError(f"--cluster {name}: neither a profile ({known}) nor a YAML file")


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected `key: value` lines, found a {type(values).__name__}")
    return values


def _explain(path: Path, error: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] != "extra_forbidden":
        return f"{path}: {key}: {error['msg']} (got {error['input']!r})"
    near = difflib.get_close_matches(key, Profile.model_fields, n=1)
    hint = f"did you mean {near[0]}?" if near else f"valid keys: {', '.join(Profile.model_fields)}"
    return f"{path}: {key}: unknown key; {hint}"


def _check_together(profile: Profile, path: Path) -> None:
    if profile.executor == "local" and profile.nodes > 1:
        raise UserError(f"--nodes {profile.nodes}: {path.stem} starts its processes on this host; several need Slurm")
    if profile.executor == "debug" and profile.world_size > 1:
        raise UserError(f"{path.stem} runs one rank in this process, not {profile.world_size}: use --cluster local")
    for key in ("setup", "modules", "container"):
        if profile.executor != "slurm" and getattr(profile, key):
            raise UserError(f"{path}: {key}: shell lines are for Slurm; run them before this command instead")
    for key in ("partition", "account", "qos", "constraint", "dependency", "mem_gb", "wckey", "srun_args", "sbatch"):
        if profile.executor != "slurm" and getattr(profile, key):
            raise UserError(f"{key} is for Slurm, and --cluster {path.stem} runs on this host: leave it out")
    # submitit takes a signal in the last ten minutes for a time-out, so that such a job is never merely preempted.
    counts_wrongly = profile.executor == "slurm" and profile.requeue and profile.minutes <= 12
    if counts_wrongly and profile.max_num_timeout is None:
        raise UserError(
            f"--time {profile.minutes}: in a job of 12 minutes or less every preemption counts as a time-out and the"
            " fourth ends it: ask for more time, or set max_num_timeout in the profile"
        )
