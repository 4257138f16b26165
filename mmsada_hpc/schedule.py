"""What the stages of a run come to at its global batch: lengths and rates by the rules of `train` (Goyal et al. 2017).

Who needs a length or a rate reads it here; `train.stage1` and `train.stage2` hold what the recipe says for
`train.base_batch`.
"""

import math
from dataclasses import dataclass

from mmsada_hpc.config_train import TrainConfig

_RULES = {"fixed": lambda ratio: 1.0, "linear": lambda ratio: ratio, "sqrt": math.sqrt}


@dataclass(frozen=True)
class StageSchedule:
    """One stage as it is run."""

    steps: int
    """Updates."""
    lr: float
    """Learning rate after the warm-up."""
    warmup: float
    """Updates over which the rate rises; a fraction where the samples of the recipe's warm-up are not whole updates."""
    loss_scale: float

    def learning_rate(self, step: int) -> float:
        """Of update `step` (from 0)."""
        return self.lr * min(1.0, (step + 1) / max(1.0, self.warmup))

    def progress(self, step: int) -> float:
        """Share of the stage that is done before update `step`: of its updates, and so of its samples."""
        return step / self.steps


def stage_schedule(train: TrainConfig, stage: int) -> StageSchedule:
    """Stage 1 or 2 at this run's global batch."""
    told = train.stage1 if stage == 1 else train.stage2
    return StageSchedule(
        steps=updates(train, told.steps),
        lr=told.lr * rate_factor(train),
        warmup=told.warmup_steps * _length_factor(train),
        loss_scale=told.loss_scale,
    )


def total_steps(train: TrainConfig) -> int:
    """Updates of both stages."""
    return stage_schedule(train, 1).steps + stage_schedule(train, 2).steps


def updates(train: TrainConfig, told: int) -> int:
    """A number of updates of the recipe as updates of this run: rounded, and not 0 unless it was 0."""
    return max(1, round(told * _length_factor(train))) if told else 0


def rate_factor(train: TrainConfig) -> float:
    """What the recipe's rates are multiplied by."""
    return _RULES[train.lr_rule](batch_ratio(train))


def batch_ratio(train: TrainConfig) -> float:
    """k: this run's global batch over the recipe's."""
    return train.global_batch / (train.base_batch or train.global_batch)


def describe_stage(train: TrainConfig, stage: int) -> str:
    """In words: updates, clips, the rate and where it comes from, the warm-up."""
    at = stage_schedule(train, stage)
    told = train.stage1 if stage == 1 else train.stage2
    rate = f"rate {at.lr:.4g}"
    if train.lr_rule != "fixed" and rate_factor(train) != 1:
        rate += f" = {told.lr:g} x {rate_factor(train):.3g} ({train.lr_rule} from batch {train.base_batch})"
    warmup = f", warm-up {at.warmup:.3g} updates ({at.warmup * train.global_batch:,.0f} clips)" if at.warmup else ""
    whole = told.steps * _length_factor(train)
    rounded = f", rounded from {whole:.4g}" if at.steps != whole else ""
    return f"{at.steps:,} updates ({at.steps * train.global_batch:,} clips{rounded}), {rate}{warmup}"


def _length_factor(train: TrainConfig) -> float:
    return 1 / batch_ratio(train) if train.lengths == "samples" else 1.0
