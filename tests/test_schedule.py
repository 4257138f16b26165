"""Rates and lengths of a recipe at another global batch, by hand."""

from typing import Any

import pytest

from mmsada_hpc.config import load_config
from mmsada_hpc.config_train import StageConfig, TrainConfig
from mmsada_hpc.errors import UserError
from mmsada_hpc.methods import moment
from mmsada_hpc.schedule import describe_stage, stage_schedule, total_steps, updates


def train(**more: Any) -> TrainConfig:
    """Written for 32 clips: 100 updates (3,200 clips), 10 of them warm-up (320 clips), then 200."""
    recipe = {
        "stage1": StageConfig(steps=100, lr=0.01, warmup_steps=10, loss_scale=1.0),
        "stage2": StageConfig(steps=200, lr=0.02, warmup_steps=0, loss_scale=0.2),
        "base_batch": 32,
    }
    return TrainConfig(**recipe | more)  # type: ignore[arg-type]


@pytest.mark.parametrize(("rule", "rate"), [("fixed", 0.01), ("linear", 0.04), ("sqrt", 0.02)])
def test_four_times_the_batch_takes_a_rate_of(rule: str, rate: float) -> None:
    assert stage_schedule(train(global_batch=128, lr_rule=rule), 1).lr == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize(("rule", "factor"), [("linear", 0.25), ("sqrt", 0.5)])
def test_a_quarter_of_the_batch_lowers_the_rate(rule: str, factor: float) -> None:
    assert stage_schedule(train(global_batch=8, lr_rule=rule), 2).lr == pytest.approx(0.02 * factor, rel=1e-12)


def test_lengths_in_updates_stay_and_in_samples_shrink_with_the_batch() -> None:
    equal_steps, equal_epochs = (train(global_batch=128, lengths=lengths) for lengths in ("updates", "samples"))
    assert [stage_schedule(equal_steps, stage).steps for stage in (1, 2)] == [100, 200]
    assert [stage_schedule(equal_epochs, stage).steps for stage in (1, 2)] == [25, 50]
    assert (total_steps(equal_steps), total_steps(equal_epochs)) == (300, 75)


@pytest.mark.parametrize("batch", [8, 16, 32, 64, 128])
def test_every_global_batch_sees_the_same_clips(batch: int) -> None:
    assert total_steps(train(global_batch=batch, lengths="samples")) * batch == 300 * 32


def test_lengths_that_do_not_divide_are_rounded_but_never_to_nothing() -> None:
    at = train(global_batch=96, lengths="samples")
    assert [stage_schedule(at, stage).steps for stage in (1, 2)] == [33, 67]
    huge = train(global_batch=32 * 1000, lengths="samples")
    assert total_steps(huge) == 2
    assert updates(huge, 0) == 0
    assert "rounded from 33.33" in describe_stage(at, 1)
    assert "rounded" not in describe_stage(train(global_batch=64, lengths="samples"), 1)


def test_without_a_base_batch_nothing_changes() -> None:
    config = TrainConfig(global_batch=512, stage1=StageConfig(steps=7, lr=0.03, warmup_steps=3, loss_scale=1))  # type: ignore[call-arg]
    at = stage_schedule(config, 1)
    assert (at.steps, at.lr, at.warmup) == (7, 0.03, 3)


def test_a_warm_up_of_samples_may_end_inside_an_update() -> None:
    at = stage_schedule(train(global_batch=128, lengths="samples", lr_rule="linear"), 1)
    assert at.warmup == 2.5
    rates = [at.learning_rate(step) for step in range(4)]
    assert rates == pytest.approx([0.04 * 1 / 2.5, 0.04 * 2 / 2.5, 0.04, 0.04], rel=1e-12)


def test_a_warm_up_shorter_than_an_update_is_none() -> None:
    at = stage_schedule(train(global_batch=32 * 16, lengths="samples"), 1)
    assert at.warmup == 10 / 16
    assert at.learning_rate(0) == at.lr


def test_a_warm_up_in_updates_rises_as_goyal_writes_it() -> None:
    at = stage_schedule(train(global_batch=64, lr_rule="linear"), 1)
    assert [at.learning_rate(step) for step in (0, 4, 9, 10)] == pytest.approx([0.002, 0.01, 0.02, 0.02], rel=1e-12)


@pytest.mark.parametrize("lengths", ["updates", "samples"])
def test_the_ramp_goes_by_the_share_of_the_samples(lengths: str) -> None:
    """A fifth of the stage is a fifth of the ramp at every batch."""
    for batch in (16, 32, 128):
        at = train(global_batch=batch, lengths=lengths)
        steps = stage_schedule(at, 2).steps
        assert stage_schedule(at, 2).progress(steps // 5) == 0.2
        assert moment(at, 2, steps // 2) == moment(at.model_copy(update={"global_batch": 32}), 2, 100)


def test_the_words_say_what_resulted_and_from_what() -> None:
    config = train(global_batch=256, lengths="samples", lr_rule="linear")
    assert describe_stage(config, 1) == (
        "12 updates (3,072 clips, rounded from 12.5), rate 0.08 = 0.01 x 8 (linear from batch 32), warm-up 1.25 "
        "updates (320 clips)"
    )
    assert describe_stage(train(global_batch=32), 2) == "200 updates (6,400 clips), rate 0.02"


@pytest.mark.parametrize("word", ["train.lr_rule=linear", "train.lr_rule=sqrt", "train.lengths=samples"])
def test_a_rule_without_the_batch_it_starts_from_is_refused(word: str) -> None:
    with pytest.raises(UserError, match=r"need train\.base_batch"):
        load_config(None, [word])


def test_steps_that_are_named_for_another_batch_are_refused() -> None:
    words = ["train.base_batch=64", "train.lengths=samples", "eval.checkpoints=[6000]"]
    assert load_config(None, [*words, "train.global_batch=64"])
    with pytest.raises(UserError, match=r"use eval\.checkpoints=\[\]"):
        load_config(None, [*words, "train.global_batch=128"])
