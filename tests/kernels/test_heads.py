"""The fused heads on a CPU compute what `mmsada_kernels.reference` defines, in fp32 and with bf16 products."""

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmsada_kernels import adaptation_heads, cpu, reference
from mmsada_kernels.reference import Mlp
from tests.kernels.head_cases import Case, Sizes, compute, definition, distances, make_case

pytestmark = pytest.mark.skipif(not cpu.is_loaded(), reason="the compiled operators are not built here")

masks = st.sampled_from(["all", "none", "some"])
sizes = st.builds(
    Sizes,
    clips=st.integers(1, 70),
    widths=st.lists(st.integers(1, 150), min_size=1, max_size=3).map(tuple),
    hidden=st.integers(1, 40),
    classes=st.integers(1, 9),
    spare=st.integers(0, 9),
    classified=masks,
    corresponds=masks,
    reversal=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 2**16),
    away=st.just(True),
)
# Sums of up to 450 products, in fp32 in whatever order: 450 * 2^-24 = 3e-5 is their bound.
FP32 = 3e-5
BF16 = 2.0**-8  # relative rounding of one bf16 value


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The cases are tiny: threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(sizes)
def test_fp32_is_the_definition_to_rounding(sizes: Sizes) -> None:
    case = make_case(sizes)
    ours, theirs = compute(adaptation_heads, case.to(torch.float32)), definition(case)
    assert max(distances(ours, theirs)) < FP32
    torch.testing.assert_close(ours.accuracies.double(), theirs.accuracies, rtol=1e-6, atol=1e-7)


@settings(max_examples=20, deadline=None, derandomize=True)  # PyTorch's bf16 prepares anew for every shape
@given(sizes, st.sampled_from([torch.float32, torch.bfloat16]))
def test_bf16_is_no_further_from_the_definition_than_autocast_is(sizes: Sizes, features: torch.dtype) -> None:
    """Within half as much again, and one rounding: of the features' gradient, which is of the features' type."""
    case = make_case(sizes)
    same = case.to(torch.float32, features=features)
    truth = definition(case)
    ours = distances(compute(adaptation_heads, same, autocast=True), truth)
    theirs = distances(compute(reference.adaptation_heads, same, autocast=True), truth)
    for place, (mine, eager) in enumerate(zip(ours, theirs, strict=True)):
        assert mine <= 1.5 * eager + BF16, f"{place}: {mine} against {eager}"


def test_a_switching_relu_is_as_in_the_definition() -> None:
    case = make_case(Sizes(clips=32, widths=(300, 200), hidden=50, away=False))
    assert max(distances(compute(adaptation_heads, case.to(torch.float32)), definition(case))) < FP32


@pytest.mark.parametrize("autocast", [False, True])
def test_no_reversal_pushes_no_feature_and_still_trains_the_discriminators(autocast: bool) -> None:
    case = make_case(Sizes(reversal=0.0)).to(torch.float32)
    found = adaptation_heads_of(case, autocast)
    gradients = torch.autograd.grad([s.loss for s in found.domain_S], [*case.features, *case.leaves[6:14]])
    assert all(not x.any() for x in gradients[:2]) and all(x.any() for x in gradients[2:])


def test_lambda_is_a_tensor_and_may_be_0() -> None:
    case = make_case(Sizes()).to(torch.float32)
    lambda_ = torch.tensor(0.0)
    found = adaptation_heads(case.features, case.dropout, **{**case.given, "reversal": lambda_})
    assert torch.autograd.grad(found.domain_S[0].loss, case.features[0])[0].abs().sum() == 0
    assert found.domain_S[0].loss.grad_fn is not None


def adaptation_heads_of(case: Case, autocast: bool = False) -> reference.AdaptationLosses:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return adaptation_heads(case.features, case.dropout, **case.given)


@pytest.mark.parametrize("autocast", [False, True])
def test_gaps_in_memory_change_nothing(autocast: bool) -> None:
    case = make_case(Sizes(clips=9)).to(torch.float32)

    def gaps(x: Tensor) -> Tensor:
        wide = torch.stack([torch.full_like(x, math.nan), x.detach()], dim=-1)
        return wide[..., 1].requires_grad_(x.requires_grad)

    def columns_first(x: Tensor) -> Tensor:
        return x.detach().t().contiguous().t().requires_grad_(x.requires_grad)

    apart = Case(
        [columns_first(x) for x in case.features],
        [x[:1].expand(9, -1) for x in case.dropout],
        {
            **case.given,
            "discriminator_S": [Mlp(*map(gaps, head)) for head in case.given["discriminator_S"]],
            "weight_ce_N": gaps(case.given["weight_ce_N"]),
            "label_N": torch.stack([case.given["label_N"]] * 2, dim=1)[:, 0],
        },
    )
    assert not any(x.is_contiguous() for x in (*apart.features, apart.leaves[6]))
    solid = replace(case, dropout=[x.contiguous() for x in apart.dropout])
    ours, theirs = (
        compute(adaptation_heads, apart, autocast=autocast),
        compute(adaptation_heads, solid, autocast=autocast),
    )
    assert ours.losses.equal(theirs.losses)
    assert all(a.equal(b) for a, b in zip(ours.gradients, theirs.gradients, strict=True))


def test_the_result_does_not_depend_on_the_number_of_threads() -> None:
    case = make_case(Sizes(clips=70, widths=(130, 90), hidden=33)).to(torch.float32)
    found = []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        found.append(compute(adaptation_heads, case))
    for other in found[1:]:
        assert other.losses.equal(found[0].losses)
        assert all(a.equal(b) for a, b in zip(other.gradients, found[0].gradients, strict=True))


def test_gradients_come_in_the_type_of_what_they_are_of() -> None:
    case = make_case(Sizes()).to(torch.float32, features=torch.bfloat16)
    found = compute(adaptation_heads, case, autocast=True)
    assert [x.dtype for x in found.gradients] == [torch.bfloat16] * 2 + [torch.float32] * 16
    assert found.losses.dtype == torch.float32


def test_only_wanted_gradients_are_formed() -> None:
    case = make_case(Sizes()).to(torch.float32)
    everything = compute(adaptation_heads, case).gradients
    for x in case.leaves[2:]:
        x.requires_grad_(False)
    found = adaptation_heads_of(case)
    total = torch.stack([f * t.loss for f, t in zip((0.7, -1.3, 0.4, 2.1), terms(found), strict=True)]).sum()
    assert all(a.equal(b) for a, b in zip(torch.autograd.grad(total, case.features), everything[:2], strict=True))
    with torch.no_grad():
        assert all(not term.loss.requires_grad for term in terms(adaptation_heads_of(case)))


def terms(found: reference.AdaptationLosses) -> list[reference.Scored]:
    return [found.classified.scored, found.corresponds, *found.domain_S]


def test_a_label_outside_the_classes_is_named() -> None:
    case = make_case(Sizes(clips=3)).to(torch.float32)
    with pytest.raises(IndexError, match=r"label_N\[2\] is 3, expected 0 to 2"):
        adaptation_heads_of(case.replace(label_N=torch.tensor([0, 1, 3])))


def test_a_correspondence_that_is_neither_yes_nor_no_is_named() -> None:
    case = make_case(Sizes(clips=3)).to(torch.float32)
    with pytest.raises(IndexError, match=r"corresponds_N\[1\] is 2, expected 0 to 1"):
        adaptation_heads_of(case.replace(corresponds_N=torch.tensor([0, 2, 1])))


def test_what_the_fused_form_does_not_take_goes_to_the_definition() -> None:
    """A lambda for each clip, dropout for all clips at once, labels of another type."""
    case = make_case(Sizes(clips=5)).to(torch.float32)
    lambda_N1 = torch.linspace(0, 1, 5)[:, None]
    for changed in (
        case.replace(reversal=lambda_N1),
        case.replace(corresponds_N=case.given["corresponds_N"].to(torch.uint8)),
    ):
        ours, theirs = compute(adaptation_heads, changed), compute(reference.adaptation_heads, changed)
        assert max(distances(ours, theirs)) < FP32


def test_a_label_that_cross_entropy_ignores_is_ignored() -> None:
    case = make_case(Sizes(clips=4, classified="all"))
    case = case.replace(label_N=torch.tensor([0, -100, 1, 2]))
    ours, theirs = compute(adaptation_heads, case.to(torch.float32)), definition(case)
    assert max(distances(ours, theirs)) < FP32


def test_a_wrong_shape_is_named() -> None:
    case = make_case(Sizes()).to(torch.float32)
    head = case.given["correspondence_head"]
    with pytest.raises(
        RuntimeError, match=r"correspondence head must be Float of shape \[10, 64\], got Float \[10, 63\]"
    ):
        adaptation_heads_of(case.replace(correspondence_head=head._replace(weight1_HD=head.weight1_HD[:, 1:])))


def test_second_derivatives_are_refused() -> None:
    case = make_case(Sizes()).to(torch.float32)
    loss = adaptation_heads_of(case).domain_S[0].loss
    (gradient,) = torch.autograd.grad(loss, case.features[0], create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        gradient.sum().backward()


@pytest.mark.parametrize("products", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("learns", [True, False])
def test_torch_checks_the_operator(products: torch.dtype, learns: bool) -> None:
    """Schema, fake tensors, registration of autograd, tracing with fixed and with symbolic sizes."""
    case = make_case(Sizes(clips=5, widths=(7, 5), hidden=3)).to(torch.float32, features=products)
    for x in case.leaves:
        x.requires_grad_(learns)
    order = ("label_N", "domain_N", "corresponds_N", "weight_ce_N", "weight_corr_N", "weight_domain_N", "reversal")
    arguments = (
        case.features,
        case.dropout,
        [x for head in case.given["classifier_S"] for x in head],
        [x for head in case.given["discriminator_S"] for x in head],
        list(case.given["correspondence_head"]),
        *(case.given[name] for name in order),
        case.given["num_classes"],
        products,
    )
    torch.library.opcheck(torch.ops.mmsada.adaptation_heads.default, arguments)


def test_fp64_is_the_reference_itself() -> None:
    case = make_case(Sizes())
    ours, theirs = compute(adaptation_heads, case), compute(reference.adaptation_heads, case)
    assert all(a.equal(b) for a, b in zip(ours.gradients, theirs.gradients, strict=True))
