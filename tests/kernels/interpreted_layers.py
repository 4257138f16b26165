"""The layers between convolutions in Triton's interpreter against their definition in fp64. `test_triton_layers.py`
runs this file in a process of its own, since triton decides at its import whether it interprets:

    TRITON_INTERPRET=1 pytest tests/kernels/interpreted_layers.py
"""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsada_kernels import layers_reference as reference
from mmsada_kernels.triton import layers
from tests.kernels.layer_cases import CASES, POOLS, Case, Window, check_norm, check_pool, make_inputs

STEP = POOLS["3x3x3 by 2"]
LAID_OUT = ("channel slices", "bf16", "bf16 channel slices", "fp16")


def test_the_kernels_are_interpreted() -> None:
    assert layers.INTERPRETED


@pytest.mark.parametrize("name", CASES)
def test_batch_norm_is_the_definition(name: str) -> None:
    check_norm(layers, CASES[name])


@pytest.mark.parametrize("name", ["as in a step", "one channel", "one place", "one frame", *LAID_OUT])
def test_a_pool_is_the_definition(name: str) -> None:
    check_pool(layers, CASES[name], STEP)


@pytest.mark.parametrize("name", POOLS)
def test_every_pool_of_the_network_is_the_definition(name: str) -> None:
    for sizes in ((4, 4, 6), (3, 5, 3)):
        check_pool(layers, Case(clips=2, channels=6, sizes=sizes), POOLS[name])


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    per_group=st.integers(1, 2), groups=st.integers(1, 3), channels=st.integers(1, 9),
    sizes=st.tuples(*[st.integers(1, 6)] * 3), kernel=st.tuples(*[st.integers(1, 3)] * 3),
    stride=st.tuples(*[st.integers(1, 3)] * 3), sliced=st.booleans(),
)  # fmt: skip
def test_any_sizes_give_the_definition(
    per_group: int, groups: int, channels: int, sizes: Any, kernel: Any, stride: Any, sliced: bool
) -> None:
    case = Case(clips=per_group * groups, channels=channels, sizes=sizes, groups=groups, sliced=sliced)
    check_norm(layers, case)
    check_pool(layers, case, Window(kernel, stride))


def test_a_channel_slice_leaves_its_neighbours_alone() -> None:
    at = make_inputs(Case())
    wide = torch.full((4, 20, 3, 5, 6), 7.0).contiguous(memory_format=torch.channels_last_3d)
    layers.norm_relu_out(at.x, *at.norm, wide[:, 4:16])
    layers.norm_relu_backward_out(at.gy, at.x, *at.norm, wide[:, 4:16])
    assert (wide[:, :4] == 7).all() and (wide[:, 16:] == 7).all() and not (wide[:, 4:16] == 7).any()


@pytest.mark.parametrize("where", [0, 4, 8])
def test_a_nan_stays_a_nan(where: int) -> None:
    at = make_inputs(Case())
    at.x[0, 0, 0, where // 3, where % 3] = torch.nan
    mean_GC, var_GC = layers.group_statistics(at.x, 2)
    assert mean_GC[0, 0].isnan() and var_GC[0, 0].isnan() and mean_GC[0, 1:].isfinite().all()
    layers.norm_relu_out(at.x, *at.norm, at.out)
    assert torch.equal(at.out.isnan(), at.x.isnan())
    for name in ("3x3x3 by 1", "3x3x3 by 2"):
        settings = (POOLS[name].kernel, POOLS[name].stride, POOLS[name].before(at.x.shape[2:]))
        found, wanted = layers.max_pool(at.x, *settings), reference.max_pool(at.x, *settings)
        assert torch.equal(found[0].isnan(), wanted[0].isnan())
        assert torch.equal(found[1], wanted[1])


def test_equal_inputs_give_equal_bits() -> None:
    case = Case(clips=2, channels=4, sizes=(4, 26, 27), groups=1)
    at = make_inputs(case)
    first, second = (layers.norm_relu_backward_out(at.gy, at.x, *at.norm, at.out) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("case", "told"),
    [
        (Case(dtype=torch.float64), "x: expected .* of torch.float32, torch.bfloat16, torch.float16"),
        (Case(groups=3, clips=4), "4 clips are not 3 groups"),
    ],
    ids=["fp64", "groups"],
)
def test_what_the_kernels_do_not_take_is_told(case: Case, told: str) -> None:
    x = torch.zeros(case.clips, 12, 2, 2, 2, dtype=case.dtype).contiguous(memory_format=torch.channels_last_3d)
    with pytest.raises(ValueError, match=told):
        layers.group_statistics(x, case.groups)


def test_other_memory_is_refused() -> None:
    at = make_inputs(Case())
    with pytest.raises(ValueError, match="x: expected channels_last_3d memory"):
        layers.group_statistics(at.x.contiguous(), 2)
    with pytest.raises(ValueError, match="out: expected channels_last_3d memory"):
        layers.norm_relu_out(at.x, *at.norm, at.out.contiguous())
    with pytest.raises(ValueError, match="a window would lie outside its input"):
        layers.max_pool(at.x, (1, 1, 1), (1, 1, 1), (1, 0, 0))
    with pytest.raises(ValueError, match="gx: expected"):
        layers.norm_relu_backward_out(at.gy, at.x, *at.norm, at.out[:2])
