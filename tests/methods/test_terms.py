"""Every loss term and its gradient, of every method, against the NumPy statement."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsada_hpc.methods import method_names
from mmsada_hpc.methods.base import Moment
from mmsada_hpc.methods.mmd import FIXED_SCALES
from tests.methods import statement
from tests.methods.build import Case, Shape, make_case

AT = Moment(stage=2, progress=0.07, scale=0.2)
shapes = st.builds(
    Shape,
    per_domain=st.sampled_from([4, 6, 8]),
    width=st.integers(2, 5),
    num_classes=st.integers(2, 4),
    seed=st.integers(0, 2**32 - 1),
)


def check_values(case: Case, name: str) -> None:
    losses = case.method.losses(case.features, case.batch, case.method.factors(AT))
    want = statement.terms(name, case.params, case.arrays, case.given)
    assert {f"loss_{term}" for term in want} == {key for key in losses.figures if key.startswith("loss_")}
    for term, value in want.items():
        assert float(losses.figures[f"loss_{term}"].detach()) == pytest.approx(value, rel=1e-10, abs=1e-12), term


def check_gradients(case: Case, name: str) -> None:
    factors = case.method.factors(AT)
    case.method.losses(case.features, case.batch, factors).total.backward()
    arrays, params = case.arrays, case.params
    for stream, x in case.features.items():
        want = np.zeros(x.shape)
        for term, factor in factors.terms.items():

            def of(moved: statement.Floats, term: str = term, stream: str = stream) -> Any:
                return statement.terms(name, params, {**arrays, stream: moved}, case.given)[term]

            sign = -factors.reversal if statement.is_reversed(term) else 1.0
            want += factor * sign * statement.slope(of, arrays[stream])
        assert x.grad is not None
        np.testing.assert_allclose(x.grad.numpy(), want, rtol=1e-9, atol=1e-12)
    for key, parameter in case.method.named_parameters():
        if not key.endswith("bias"):  # the biases' gradients are sums of what the weights' are made of
            head = params[key]

            def total(moved: statement.Floats, key: str = key, head: statement.Floats = head) -> Any:
                changed = {**params, key: np.concatenate([moved, head[2:]])}
                found = statement.terms(name, changed, arrays, case.given)
                return sum(factor * found[term] for term, factor in factors.terms.items())

            assert parameter.grad is not None, key
            want = statement.slope(total, head[:2])  # two rows of each: all of them would take minutes
            np.testing.assert_allclose(parameter.grad.numpy()[:2], want, rtol=1e-9, atol=1e-12, err_msg=key)


@pytest.mark.parametrize("name", method_names())
@settings(max_examples=10, deadline=None)
@given(shape=shapes)
def test_every_term_equals_its_formula(name: str, shape: Shape) -> None:
    check_values(make_case(name, shape), name)


@pytest.mark.parametrize("name", method_names())
@settings(max_examples=3, deadline=None)
@given(shape=shapes)
def test_every_gradient_is_that_of_the_formula(name: str, shape: Shape) -> None:
    check_gradients(make_case(name, shape), name)


@settings(max_examples=10, deadline=None)
@given(shape=shapes)
def test_mmd_around_the_median_equals_its_formula(shape: Shape) -> None:
    case = make_case("mmd", shape, mmd_kernels="median")
    check_values(case, "mmd")
    check_gradients(case, "mmd")


def test_the_fixed_kernels_are_the_twelve_that_are_listed() -> None:
    np.testing.assert_allclose(FIXED_SCALES, statement.GAMMAS, rtol=7e-3)
    assert len(FIXED_SCALES) == 12


def test_mmd_of_equal_sets_is_nothing_and_grows_with_their_distance() -> None:
    case = make_case("mmd", Shape(per_domain=8, width=4, num_classes=3, seed=1, block=8))
    found = []
    for shift in (0.0, 0.5, 2.0):
        x = {s: torch.cat([f.detach()[:8], f.detach()[:8] + shift]) for s, f in case.features.items()}
        found.append(float(case.method.losses(x, case.batch, case.method.factors(AT)).figures["loss_mmd_rgb"]))
    assert found[0] == pytest.approx(0, abs=1e-12)
    assert 0 < found[1] < found[2]


def test_mcd_reverses_on_target_clips_alone() -> None:
    """Source clips never see the reversal: their gradient is that of the classification of both heads."""
    case = make_case("mcd", Shape(per_domain=6, width=16, num_classes=3, seed=2))
    losses = case.method.losses(case.features, case.batch, case.method.factors(AT))
    (gradient,) = torch.autograd.grad(losses.figures["loss_discrepancy"], [case.features["rgb"]], retain_graph=True)
    assert (gradient[:6] == 0).all()
    assert (gradient[6:].abs().sum(dim=1) > 0).all()
    (heads,) = torch.autograd.grad(losses.total, [case.method.get_parameter("auxiliary.rgb.weight")])
    assert heads.abs().sum() > 0


@pytest.mark.parametrize("name", method_names())
def test_stage_1_aligns_nothing_and_leaves_no_head_out(name: str) -> None:
    case = make_case(name, Shape(per_domain=4, width=3, num_classes=2, seed=3))
    factors = case.method.factors(Moment(stage=1, progress=0.5, scale=1.0))
    supervised = {"ce", "corr", "auxiliary"}
    assert factors.reversal == 0
    assert all(factor == 0 for term, factor in factors.terms.items() if term not in supervised)
    assert all(factors.terms[term] > 0 for term in supervised & factors.terms.keys())
    case.method.losses(case.features, case.batch, factors).total.backward()
    assert all(p.grad is not None for p in case.method.parameters()), "in the graph at every step (law 3)"


def test_stage_2_has_the_published_weights() -> None:
    """0.2 * CE, corr 1, the discriminators 1, MMD and MCD 0.2, the reversal peaks at 0.2 (spec 2.1)."""
    at = Moment(stage=2, progress=1.0, scale=0.2)

    def factors(name: str, **more: str) -> dict[str, float]:
        case = make_case(name, Shape(per_domain=4, width=2, num_classes=2, seed=0), **more)
        found = case.method.factors(at)
        return {**found.terms, "reversal": round(found.reversal, 3)}

    assert factors("source_only") == {"ce": 0.2, "reversal": 0}
    assert factors("adabn") == {"ce": 0.2, "reversal": 0}
    assert factors("self_supervised") == {"ce": 0.2, "corr": 1.0, "reversal": 0}
    assert factors("adversarial") == {"ce": 0.2, "domain_rgb": 1, "domain_flow": 1, "reversal": 0.2}
    assert factors("adversarial", lambda_d="0.5")["reversal"] == 0.1
    both = {"ce": 0.2, "corr": 1.0, "domain_rgb": 1, "domain_flow": 1, "reversal": 0.2}
    assert factors("mmsada") == both
    assert factors("mmd") == {"ce": 0.2, "mmd_rgb": 0.2, "mmd_flow": 0.2, "reversal": 0}
    assert factors("mcd") == {"ce": 0.2, "auxiliary": 0.2, "discrepancy": -0.2, "reversal": 1.0}
