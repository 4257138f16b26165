"""However the global batch is split, every rank takes whole batch-norm groups, and all rows are taken once (laws 1,
2).
"""

from typing import Any

import numpy as np
import pytest

from mmsada_hpc.data.layout import BatchLayout, plan_layout
from mmsada_hpc.errors import UserError


def split(
    world: int, micro: int, *, layout: Any = "auto", domains: int = 2, batch: int = 128, group: int = 16
) -> BatchLayout:
    return plan_layout(
        global_batch=batch, micro_batch=micro, world_size=world, group_size=group, num_domains=domains, layout=layout
    )


def groups_of(layout: BatchLayout) -> set[tuple[int, ...]]:
    found = set()
    for rank in range(layout.world_size):
        for micro in range(layout.accumulation):
            rows = layout.rows(rank, micro)
            found |= {tuple(g) for g in rows.reshape(-1, layout.group_size).tolist()}
    return found


@pytest.mark.parametrize(
    ("world", "micro", "kind"),
    [
        (1, 128, "mixed"),
        (4, 32, "mixed"),
        (2, 32, "mixed"),
        (8, 16, "domain_pure"),
        (2, 16, "domain_pure"),
        (1, 16, "domain_pure"),
    ],
)
def test_every_split_sees_the_same_groups(world: int, micro: int, kind: str) -> None:
    layout = split(world, micro)
    assert layout.layout == kind
    assert layout.accumulation == 128 // (world * micro)
    assert groups_of(layout) == {tuple(range(g, g + 16)) for g in range(0, 128, 16)}


def test_a_domain_pure_rank_holds_one_domain_in_all_its_micro_batches() -> None:
    layout = split(4, 16)
    for rank in range(4):
        rows = np.concatenate([layout.rows(rank, micro) for micro in range(layout.accumulation)])
        assert (rows < 64).all() == (rank < 2)


def test_a_mixed_micro_batch_is_half_source_half_target() -> None:
    rows = split(4, 32).rows(1, 0)
    assert rows.tolist() == [*range(16, 32), *range(80, 96)]


def test_a_micro_batch_that_cuts_a_group_is_refused_with_the_sizes_that_fit() -> None:
    with pytest.raises(UserError, match=r"train.micro_batch=8 .* sizes that fit: 16, 32, 64"):
        split(2, 8)


def test_a_global_batch_that_is_not_whole_groups_is_refused_with_one_that_is() -> None:
    with pytest.raises(UserError, match=r"train.global_batch=100 .* multiple of 32, for instance 96"):
        split(1, 100, batch=100)


def test_source_only_batches_have_one_domain() -> None:
    layout = split(2, 64, domains=1)
    assert (layout.domain_batch, layout.groups) == (128, (8, 0))
