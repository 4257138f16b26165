"""From the seconds of single updates to the account of a rank: each part of an update, one figure a repeat."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmsada_hpc.bench.e2e_loop import PARTS, REST
from mmsada_hpc.config import Config
from mmsada_hpc.schedule import total_steps


@dataclass(frozen=True)
class Account:
    """Milliseconds of an update on one rank, one figure a repeat."""

    parts: Mapping[str, list[float]]
    """Those of `PARTS`, then `checkpoint` (its share at the config's own rate) and `other`: they add up to `whole`."""
    whole: list[float]
    rest: Mapping[str, list[float]]
    """What of `other` is known by name."""
    cpu: list[float]
    """CPU time of the process, decoding included."""
    saves: list[float]
    """For which a checkpoint held the loop."""
    writes: list[float]
    """That the rest of it took in the background."""


def account(
    config: Config,
    updates: Sequence[Mapping[str, float]],
    saves: Sequence[float],
    writes: Sequence[float],
    *,
    per_repeat: int,
) -> Account:
    """Of one rank, after the first `per_repeat` updates, which warm up.

    Args:
        config: whose checkpoints count, not those of the benchmark's own short run.
        updates: seconds, as `Stopwatch.updates` has them.
        saves, writes: seconds of the checkpoint after each repeat.
    """
    found = [means(updates[i : i + per_repeat]) for i in range(per_repeat, len(updates), per_repeat)]
    parts = {part: [sum(one.get(n, 0.0) for n in names) for one in found] for part, names in PARTS.items()}
    wholes = [one["whole"] for one in found]
    parts["checkpoint"] = [
        1000 * save * checkpoints_per_update(config, whole / 1000)
        for save, whole in zip(saves[1:], wholes, strict=True)
    ]
    parts["other"] = [
        whole - sum(known) for whole, *known in zip(wholes, *(parts[part] for part in PARTS), strict=True)
    ]
    return Account(
        parts,
        [sum(values) for values in zip(*parts.values(), strict=True)],
        {name: [one.get(name, 0.0) for one in found] for name in REST},
        [one["cpu"] for one in found],
        [1000 * save for save in saves[1:]],
        [1000 * write for write in writes[1:]],
    )


def means(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Milliseconds of an update by part, over some updates in seconds."""
    names = {name for update in updates for name in update}
    return {name: 1000 * statistics.fmean(update.get(name, 0.0) for update in updates) for name in names}


def checkpoints_per_update(config: Config, update_s: float) -> float:
    """How often a run of this config saves: by steps or by minutes, whichever comes first, or only at its end."""
    often = [1 / total_steps(config.train)]
    if config.checkpoint.every:
        often.append(1 / config.checkpoint.every)
    if config.checkpoint.minutes:
        often.append(update_s / (60 * config.checkpoint.minutes))
    return max(often)
