"""A run folder before its first start: the config that its jobs read, and what forbids to use the folder for it."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from mmsada_hpc.cluster.job_record import CANCELLED_FILE
from mmsada_hpc.config import Config, build_config, config_hash, deciding_values, dump_config, load_config
from mmsada_hpc.durable import write_atomically
from mmsada_hpc.errors import UserError

CONFIG_FILE = "config.yaml"
_FILES = ("metrics.jsonl", "result.json")  # of a run that is finished; the first alone may be of one that goes on
_NAMED = 4


def resolved(config: Config, *, micro_batch: int | None = None, run_dir: Path | None = None) -> Config:
    """The config as a job reads it from any folder: paths absolute, the micro-batch filled in.

    Args:
        micro_batch: of the world that it will run in.
        run_dir: where the run lies now; None = where the config says.
    """
    values = config.model_dump(mode="json")
    values["run"]["dir"] = _absolute(str(run_dir or config.run.dir))
    values["data"]["store"] = _absolute(values["data"]["store"])
    for stream in values["data"]["streams"].values():
        stream["arrays"] = _absolute(stream["arrays"])
    values["model"]["pretrained"] = {s: _absolute(path) for s, path in values["model"]["pretrained"].items()}
    if micro_batch is not None:
        values["train"]["micro_batch"] = micro_batch
    return build_config(values)


def config_of(run_dir: Path) -> Path:
    """Where the config of a run lies.

    Raises:
        UserError: the folder holds no run.
    """
    path = run_dir / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{run_dir}: no {CONFIG_FILE} there, so it is not the folder of a run")
    return path


def write_config(config: Config) -> Path:
    """Write the resolved config into its run folder, for jobs and people."""
    path: Path = config.run.dir / CONFIG_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, dump_config(config).encode())
    return path


def renew_config(config: Config) -> Path:
    """Bring what a resume may change into the config of a run, and leave the rest of the file as it is: the run's own
    copy of the code reads it, which may not know every key that this code has.
    """
    path: Path = config.run.dir / CONFIG_FILE
    values = yaml.safe_load(path.read_text())
    wanted: dict[str, dict[str, Any]] = {
        "run": {"dir": str(config.run.dir)},
        "train": {"micro_batch": config.train.micro_batch},
    }
    if any(values.get(section, {}).get(key) != value for section, new in wanted.items() for key, value in new.items()):
        for section, new in wanted.items():
            values[section] = {**values.get(section, {}), **new}
        write_atomically(path, yaml.safe_dump(values, sort_keys=False).encode())
    return path


def is_finished(run_dir: Path) -> bool:
    return all((run_dir / name).is_file() for name in _FILES)


def is_cancelled(run_dir: Path) -> bool:
    """Whether a person wants the run stopped."""
    return (run_dir / CANCELLED_FILE).exists()


def refuse_other_run(config: Config) -> None:
    """A folder with checkpoints or a result of other settings is not taken for this run.

    Raises:
        UserError: names the first keys that differ.
    """
    run_dir = config.run.dir
    path = run_dir / CONFIG_FILE
    if not path.is_file() or not (is_finished(run_dir) or any((run_dir / "checkpoints").glob("stage*"))):
        return
    if differ := differences(load_config(path), config):
        more = f" and {len(differ) - _NAMED} more" if len(differ) > _NAMED else ""
        raise UserError(
            f"run.dir={run_dir} holds a run with other settings ({'; '.join(differ[:_NAMED])}{more}): choose another "
            f"run.dir, or remove that folder"
        )


def differences(there: Config, here: Config) -> list[str]:
    """The settings that decide a result and are not alike, `train.stage1.lr is 0.01 there, 0.5 here`."""
    mine, other = deciding_values(resolved(here)), deciding_values(resolved(there))
    if mine == other:
        return []
    if other["model"]["pretrained"] != mine["model"]["pretrained"] and config_hash(there) == config_hash(here):
        return []  # the same weights at another path
    before, now = dict(_flat(other)), dict(_flat(mine))
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return [f"{key} is {json.dumps(before.get(key))} there, {json.dumps(now.get(key))} here" for key in keys]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).absolute())
