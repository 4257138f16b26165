"""Which settings of runs make another result, and which of them differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmsada_hpc.observe.runs import Run

Settings = dict[str, str]

# What leaves the result alone: who and where (seed, run, observe), what `config_hash` leaves out (law 1: the machine
# and the batch's layout over ranks), and how much is scored beside the number that is compared.
_WITHOUT_EFFECT = (
    "seed", "run.", "observe.", "checkpoint.",
    "train.micro_batch", "train.layout", "train.device", "train.memory_format",
    "train.cudnn_benchmark", "train.accelerate", "train.side_by_side", "train.overlap",
    "data.store", "data.device", "data.threads", "data.prefetch", "data.readers",
    "eval.every", "eval.during", "eval.batch", "eval.sets",
)  # fmt: skip


def flat(config: Any, prefix: str = "") -> Settings:
    """{"train.lr": "0.01", ...} from a nested configuration."""
    if not isinstance(config, dict):
        return {prefix: str(config)}
    leaves: Settings = {}
    for name, value in config.items():
        leaves.update(flat(value, f"{prefix}.{name}" if prefix else str(name)))
    return leaves


def _has_effect(key: str) -> bool:
    if key.startswith("data.streams.") and key.endswith(".arrays"):
        return False  # a path, as data.store
    return not any(key == name or (name.endswith(".") and key.startswith(name)) for name in _WITHOUT_EFFECT)


def settings_of(run: Run) -> Settings:
    """The resolved settings that decide the result (the seed apart), and the classes it was counted over."""
    settings = {key: value for key, value in flat(run.config).items() if _has_effect(key)}
    classes = run.result.get("classes")
    if isinstance(classes, list):
        settings["classes"] = ", ".join(map(str, classes))
    return settings


def differing(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """Keys whose value is not the same everywhere, in their order; "-" stands for a key that is not there."""
    keys = dict.fromkeys(key for one in settings for key in one)
    return [key for key in keys if len({one.get(key, "-") for one in settings}) > 1]


def who_has_what(runs: Sequence[Run], key: str, *, most: int = 3) -> str:
    """`0.01 (5 runs), 0.1 (mcd-s2)`: the values of one setting and who has them, the common ones first."""
    holders: dict[str, list[str]] = {}
    for run in runs:
        holders.setdefault({**flat(run.config), **settings_of(run)}.get(key, "-"), []).append(run.name)
    ordered = sorted(holders.items(), key=lambda item: -len(item[1]))
    return ", ".join(
        f"{value} ({', '.join(names) if len(names) <= most else f'{len(names)} runs'})" for value, names in ordered
    )
