"""What a run needs, before it has run: counted on the real network with tensors that hold nothing (device `meta`)."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mmsada_hpc.config import Config
from mmsada_hpc.data.layout import BatchLayout
from mmsada_hpc.methods import moment
from mmsada_hpc.observe.record import read_json, read_record, read_yaml
from mmsada_hpc.observe.runs import RESULT_FILE
from mmsada_hpc.schedule import stage_schedule
from mmsada_hpc.submit.run_folder import CONFIG_FILE
from mmsada_hpc.train.module import TrainModule
from mmsada_hpc.train.optimizers import SLOTS

_FLOAT_BYTES = {"fp32": 4, "bf16": 4, "fp64": 8}
_MOST_RUNS = 500
"""That are looked at for one of the same shape."""


@dataclass(frozen=True)
class Cost:
    """Of the networks; the heads add less than a thousandth."""

    parameters: int
    """With the heads."""
    flops: float
    """Of one clip, forward and backward; a multiplication and an addition are two."""
    kept_bytes: float
    """What autograd keeps of one clip from forward to backward, in fp32."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank."""

    parameters: float
    gradients: float
    momentum: float
    """And the averages of squares that LAMB and AdamW keep beside it."""
    activations: float

    @property
    def total(self) -> float:
        return self.parameters + self.gradients + self.momentum + self.activations


@dataclass(frozen=True)
class Ramp:
    """When the gradient reversal of stage 2 reaches a share of its last value."""

    last: float
    updates: dict[int, int]
    """Percent -> updates of stage 2."""


def cost_of(config: Config, *, num_classes: int) -> Cost:
    """Count one forward and backward of the networks, of one batch-norm group."""
    values = config.model_dump(mode="json", include={"data", "model", "method"})
    values["data"]["store"] = None
    return _cost(json.dumps(values), num_classes)


@lru_cache
def _cost(config_json: str, num_classes: int) -> Cost:
    config = Config.model_validate_json(config_json)
    module = _meta_module(config, num_classes)
    clips, group = _meta_clips(config), config.model.batch_norm.group_size
    own = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if (key := tensor.untyped_storage()._cdata) not in own:
            kept[key] = tensor  # held, so that no other storage gets its place
        return tensor

    counter = FlopCounterMode(display=False)
    with counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            features = module.network(clips, (0,))
        torch.stack([value.sum() for value in features.values()]).sum().backward()
    kept_bytes = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return Cost(sum(p.numel() for p in module.parameters()), counter.get_total_flops() / group, kept_bytes / group)


def memory_of(config: Config, cost: Cost, layout: BatchLayout) -> Memory:
    """Of training with the optimiser's state, sharded as ZeRO does; without what libraries and the loader take."""
    train, size = config.train, _FLOAT_BYTES[config.train.precision]
    share = [layout.world_size if train.zero_stage >= stage else 1 for stage in (3, 2, 1)]
    parameters, gradients, momentum = (cost.parameters * size / ranks for ranks in share)
    momentum *= sum(slot != "step" for slot in SLOTS[train.optimizer])
    # under autocast what is kept is mostly bf16
    wide = {"fp32": 1.0, "bf16": 0.5, "fp64": 2.0}[train.precision]
    return Memory(parameters, gradients, momentum, cost.kept_bytes * wide * layout.micro_batch)


def ramp_of(config: Config, *, num_classes: int) -> Ramp | None:
    """Of the gradient reversal, from the method's own schedule; None where the method has none."""
    method, steps = _meta_module(config, num_classes).method, stage_schedule(config.train, 2).steps
    values = [method.factors(moment(config.train, 2, step)).reversal for step in range(steps)]
    if not values or not values[-1]:
        return None
    reached = {part: next(i for i, v in enumerate(values) if v >= part / 100 * values[-1]) for part in (10, 50, 90)}
    return Ramp(values[-1], reached)


@dataclass(frozen=True)
class Speed:
    """Clips per second of former runs of the same shape."""

    clips_per_s: float
    runs: int
    example: Path


def former_speed(config: Config, layout: BatchLayout, *, device: str) -> Speed | None:
    """Median over finished runs beside this one that differ in nothing that decides the speed; None: there is none.

    Args:
        device: `cpu` or `cuda`; that the processor is the same kind nobody can know here.
    """
    found = []
    for run_dir in _neighbours(config.run.dir):
        result, other = read_json(run_dir / RESULT_FILE), read_yaml(run_dir / CONFIG_FILE)
        starts = read_record(run_dir)
        if not starts or not str(starts[-1].get("device", "")).startswith(device):
            continue
        if (
            result.get("world_size") == layout.world_size
            and result.get("clips_per_s")
            and _shape(other) == _shape(config.model_dump(mode="json"))
        ):
            found.append((float(result["clips_per_s"]), run_dir))
    if not found:
        return None
    found.sort()
    return Speed(found[len(found) // 2][0], len(found), found[len(found) // 2][1])


def _neighbours(run_dir: Path) -> Iterator[Path]:
    """Finished runs in `runs/` here and beside the run."""
    seen: set[Path] = set()
    for folder in (Path("runs"), run_dir.parent):
        for path in folder.glob("**/" + RESULT_FILE) if folder.is_dir() else ():
            if path.parent.resolve() not in seen and len(seen) < _MOST_RUNS:
                seen.add(path.parent.resolve())
                yield path.parent


def _shape(config: dict[str, Any]) -> tuple[Any, ...]:
    data, train, model = (config.get(section) or {} for section in ("data", "train", "model"))
    return (
        *(data.get(key) for key in ("num_frames", "crop", "streams")),
        *(train.get(key) for key in ("engine", "precision", "zero_stage", "global_batch")),
        model.get("width"),
        (config.get("method") or {}).get("name"),
    )


def _meta_module(config: Config, num_classes: int) -> TrainModule:
    with torch.device("meta"):
        return TrainModule(config, num_classes=num_classes)


def _meta_clips(config: Config) -> dict[str, Tensor]:
    data, group = config.data, config.model.batch_norm.group_size
    shapes = {name: (data.num_frames, data.crop, data.crop, channels) for name, channels in (("rgb", 3), ("flow", 2))}
    arrays = {name: (stream.length, stream.channels) for name, stream in data.streams.items()}
    return {name: torch.empty(group, *shape, device="meta") for name, shape in {**shapes, **arrays}.items()}
