"""The plan is a pure function of (seed, stage, step): what every step trains on, whatever the machine (laws 1, 3; spec
2.3).
"""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsada_hpc.data.philox import Purpose, keep_mask, uniform, words
from mmsada_hpc.data.plan import ClipPlan, EpochOrder, Planner, Pool
from mmsada_hpc.data.windows import WindowRule
from mmsada_hpc.errors import UserError
from mmsada_hpc.methods.mmsada import MmSada

GOLDEN = Path(__file__).with_name("golden_plan.txt")
RULE = WindowRule(16, 2, 2)


def pool(size: int, *, first_row: int = 0) -> Pool:
    start = 50 + 7 * np.arange(size)
    return Pool(first_row + np.arange(size), start, start + 90 + np.arange(size) % 40, np.arange(size) % 8)


def planner(
    *, source: int = 200, target: int = 150, batch: int = 64, seed: int = 3, synchronised: bool = False
) -> Planner:
    return Planner(
        seed=seed,
        pools=(pool(source), pool(target, first_row=1000)),
        domain_batch=batch,
        rule=RULE,
        frame_size=(256, 456),
        crops="released",
        synchronised=synchronised,
        negatives=True,
        weigh=MmSada.weigh,
    )


def rows_of(plan: ClipPlan) -> list[str]:
    return [
        f"{plan.domain_N[i]} {plan.label_N[i]} {int(plan.corresponds_N[i])}  "
        + "  ".join(
            f"{v.segment_N[i]} {v.centre_N[i]} {','.join(map(str, v.box_N4[i]))} {int(v.flip_N[i])}"
            for v in (plan.views["rgb"], plan.views["flow"])
        )
        for i in range(len(plan))
    ]


def digest(plan: ClipPlan) -> str:
    return hashlib.sha256("\n".join(rows_of(plan)).encode()).hexdigest()


def golden_rows() -> list[str]:
    made = [
        f"stage {stage} step {step}: {row}"
        for stage, step in ((1, 0), (2, 4321))
        for row in rows_of(planner(batch=8).step(stage, step))
    ]
    made.append(
        f"dropout: {keep_mask(seed=3, stage=1, step=5, lane=1, rows=4, features=10, drop=0.5).astype(int).tolist()}"
    )
    return made


def test_plan_rows_equal_the_golden_list() -> None:
    """If this fails, old runs can no longer be resumed or repeated: change the law, not the list."""
    assert golden_rows() == GOLDEN.read_text().splitlines()


def test_any_step_can_be_planned_first() -> None:
    forward = planner()
    for step in range(9):
        last = forward.step(2, step)
    assert digest(planner().step(2, 8)) == digest(last)


def test_seed_stage_and_step_each_change_the_plan() -> None:
    assert (
        len({digest(planner(seed=seed).step(stage, step)) for seed in (3, 4) for stage in (1, 2) for step in (0, 1)})
        == 8
    )


def test_half_of_each_domain_is_negative_and_takes_another_segments_flow() -> None:
    plan = planner().step(1, 0)
    for domain in (0, 1):
        inside = plan.domain_N == domain
        assert plan.corresponds_N[inside].sum() == 32
        assert ((plan.views["rgb"].segment_N >= 1000) == (plan.domain_N == 1)).all(), "a pair stays in its domain"
        assert ((plan.views["flow"].segment_N >= 1000) == (plan.domain_N == 1)).all()
    assert ((plan.views["rgb"].segment_N == plan.views["flow"].segment_N) == plan.corresponds_N).all()


def test_negatives_are_one_cyclic_shift() -> None:
    plan = planner().step(1, 0)
    negative = (~plan.corresponds_N) & (plan.domain_N == 0)
    follow = dict(
        zip(
            plan.views["rgb"].segment_N[negative].tolist(), plan.views["flow"].segment_N[negative].tolist(), strict=True
        )
    )
    first = segment = next(iter(follow))
    for _ in range(31):
        segment = follow[segment]
        assert segment != first
    assert follow[segment] == first


def test_rgb_and_flow_windows_crops_and_flips_are_drawn_apart() -> None:
    plan = planner().step(1, 0)
    positive = plan.corresponds_N
    assert (plan.views["rgb"].centre_N != plan.views["flow"].centre_N)[positive].mean() > 0.8
    assert (plan.views["rgb"].flip_N != plan.views["flow"].flip_N)[positive].any()


def test_synchronised_positives_share_centre_crop_and_flip_and_negatives_do_not() -> None:
    plan = planner(synchronised=True).step(1, 0)
    positive = plan.corresponds_N
    assert (plan.views["rgb"].centre_N == plan.views["flow"].centre_N)[positive].all()
    assert (plan.views["rgb"].box_N4 == plan.views["flow"].box_N4)[positive].all()
    assert (plan.views["rgb"].flip_N == plan.views["flow"].flip_N)[positive].all()
    assert (plan.views["rgb"].box_N4 != plan.views["flow"].box_N4)[~positive].any()


def test_weights_are_one_over_the_global_count_of_each_term() -> None:
    plan = planner().step(1, 0)
    assert plan.weights["ce"].sum() == pytest.approx(1)
    assert set(plan.weights["ce"]) == {0, 1 / 32}
    assert (plan.weights["ce"][plan.domain_N == 1] == 0).all(), "no target label is trained on"
    assert (plan.weights["corr"] == 1 / 128).all()
    assert (plan.weights["domain"] == 1 / 128).all()


@given(st.integers(2, 60), st.data())
@settings(max_examples=60, deadline=None)
def test_an_epoch_shows_every_segment_once_and_no_draw_repeats_one(size: int, data: st.DataObject) -> None:
    draw = data.draw(st.integers(1, size - 1))
    order = EpochOrder(seed=1, stage=1, domain=0, pool=size, draw=draw)
    draws = [order.positions(step) for step in range(3 * size)]
    assert all(len(set(d.tolist())) == draw for d in draws)
    stream = np.concatenate(draws)
    for epoch in range(len(stream) // size):
        assert sorted(stream[epoch * size : (epoch + 1) * size].tolist()) == list(range(size))


@given(st.integers(3, 30), st.integers(4, 90), st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_a_batch_larger_than_the_pool_takes_whole_passes_and_still_pairs_different_segments(
    size: int, batch: int, step: int
) -> None:
    plan = planner(source=size, target=size, batch=batch).step(1, step)
    source = plan.domain_N == 0
    counts = Counter(plan.views["rgb"].segment_N[source].tolist())
    assert max(counts.values()) - min([*counts.values(), 0] if len(counts) < size else counts.values()) <= 1
    negative = source & ~plan.corresponds_N
    assert (plan.views["rgb"].segment_N != plan.views["flow"].segment_N)[negative].all()


def test_a_pool_without_a_second_segment_to_pair_is_refused() -> None:
    with pytest.raises(UserError, match="3 or more"):
        planner(source=2)


def test_a_prefix_of_words_does_not_depend_on_how_many_are_asked_for() -> None:
    few = words(seed=1, purpose=Purpose.WINDOW, stage=1, step=2, lane=0, shape=(4,))
    many = words(seed=1, purpose=Purpose.WINDOW, stage=1, step=2, lane=0, shape=(9,))
    assert (many[:4] == few).all()


def test_uniform_integers_cover_their_range_evenly() -> None:
    drawn = uniform(words(seed=1, purpose=Purpose.WINDOW, stage=1, step=2, lane=0, shape=(60000,)), 6)
    assert np.bincount(drawn, minlength=6).min() > 9700
    assert len(np.bincount(drawn)) == 6


def test_dropout_keeps_its_share_and_its_scale() -> None:
    mask = keep_mask(seed=1, stage=1, step=0, lane=0, rows=64, features=1024, drop=0.25)
    assert set(np.unique(mask).tolist()) == {0.0, float(np.float32(1) / np.float32(0.75))}
    assert mask.mean() == pytest.approx(1, abs=0.01)
    assert (keep_mask(seed=1, stage=1, step=0, lane=0, rows=8, features=1024, drop=0.25) == mask[:8]).all(), (
        "a row depends on its place alone"
    )
