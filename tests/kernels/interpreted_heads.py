"""The fused heads in Triton's interpreter against the reference in fp64. `test_triton_heads.py` runs this file in a
process of its own, since triton decides at its import whether it interprets:

    TRITON_INTERPRET=1 pytest tests/kernels/interpreted_heads.py
"""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsada_kernels.triton import heads
from tests.kernels.triton_cases import CASES, Case, Inputs, check, fused, make_inputs


def run(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return heads.adaptation_heads(*inputs.arguments)


def test_the_kernels_are_interpreted() -> None:
    assert heads.INTERPRETED


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_the_references(name: str) -> None:
    inputs = make_inputs(CASES[name])
    check(CASES[name], inputs, fused(CASES[name], inputs))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    clips=st.integers(1, 9), fours=st.integers(1, 20), hidden=st.integers(1, 20), classes=st.integers(1, 20),
    streams=st.integers(1, 3), seed=st.integers(0, 1000),
)  # fmt: skip
def test_any_sizes_give_the_reference(
    clips: int, fours: int, hidden: int, classes: int, streams: int, seed: int
) -> None:
    case = Case(
        clips=clips, width=4 * fours, hidden=hidden, classes=classes, num_classes=(classes + 1) // 2, streams=streams
    )
    inputs = make_inputs(case, seed=seed)
    check(case, inputs, fused(case, inputs))


def test_the_losses_alone_are_differentiable() -> None:
    losses_T, accuracies_T, logits_NK = run(make_inputs(Case()))
    assert losses_T.requires_grad and not accuracies_T.requires_grad and not logits_NK.requires_grad


def test_a_tie_goes_to_the_first_class_as_in_the_reference() -> None:
    inputs = make_inputs(Case(masks="all"))
    with torch.no_grad():
        for parameter in [*inputs.classifier, *inputs.discriminator, *inputs.correspondence]:
            parameter.zero_()
    check(Case(), inputs, fused(Case(), inputs))


@pytest.mark.parametrize(("place", "term"), [(0, 0), (1, 2)], ids=["class", "domain"])
def test_a_target_out_of_range_makes_its_loss_nan(place: int, term: int) -> None:
    inputs = make_inputs(Case(masks="all"))
    inputs.targets[place][2] = 8
    losses_T, _, _ = run(inputs)
    assert losses_T[term].isnan()
    assert losses_T[1].isfinite()


def test_equal_inputs_give_equal_bits() -> None:
    inputs = make_inputs(Case(clips=7))
    first, second = fused(Case(), inputs), fused(Case(), inputs)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_three_launches_forward_and_two_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[str] = []
    launch = heads.launch

    def counting(kernel: Any, *args: Any, **options: Any) -> None:
        launched.append(kernel.__name__)
        launch(kernel, *args, **options)

    monkeypatch.setattr(heads, "launch", counting)
    inputs = make_inputs(Case(streams=3))
    losses_T, _, _ = run(inputs)
    assert launched == ["project", "score", "total"]
    losses_T.sum().backward()
    assert launched[3:] == ["spread", "gather"]


def test_opcheck_passes_forward_and_backward() -> None:
    inputs = make_inputs(Case(clips=3, width=20, hidden=8, classes=5, num_classes=4))
    operators = torch.ops.mmsada
    torch.library.opcheck(operators.adaptation_heads_triton.default, (*inputs.arguments, "fp32"))
    tensors = inputs.arguments[:5]
    states = list(operators.adaptation_heads_triton(*inputs.arguments, "fp32")[3:])
    arguments = (inputs.by_losses_T.float(), *tensors, states, inputs.reversal, "fp32")
    with torch.no_grad():
        torch.library.opcheck(
            operators.adaptation_heads_triton_backward.default,
            arguments,
            test_utils=("test_schema", "test_faketensor"),
        )


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
def test_torch_compile_sees_one_operator(autocast: bool) -> None:
    case = Case(autocast=autocast)
    inputs = make_inputs(case)
    compiled = torch.compile(heads.adaptation_heads, fullgraph=True, backend="aot_eager")
    check(case, inputs, fused(case, inputs, compiled))


@pytest.mark.parametrize(
    ("case", "told"),
    [
        (Case(streams=5), "5 streams, at most 4"),
        (Case(classes=65), "65 classes, at most 64"),
        (Case(hidden=129), "129 hidden units, at most 128"),
        (Case(classes=4), "the first 8 of 4 classes"),
        (Case(clips=0), "no clips"),
        (Case(features=torch.float64), "features of torch.float64"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_kernels_do_not_take_is_told(case: Case, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        run(make_inputs(case))


def test_a_tensor_of_the_wrong_shape_is_named() -> None:
    inputs = make_inputs(Case())
    inputs.correspondence[0] = inputs.correspondence[0][:, :40]
    with pytest.raises(ValueError, match=r"correspondence must have the shapes \[\(12, 80\)"):
        run(inputs)


def test_a_reload_registers_the_operator_again() -> None:
    from importlib import reload

    reload(heads)
    inputs = make_inputs(Case())
    check(Case(), inputs, fused(Case(), inputs, heads.adaptation_heads))
