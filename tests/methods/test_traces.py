"""Twenty updates of every method are what they were: a refactor that changes the method is seen."""

import json

import pytest

from mmsada_hpc.methods import method_names
from tests.methods.trace import GOLDEN, STEPS, all_traces

Traces = dict[str, list[dict[str, float]]]


@pytest.fixture(scope="module")
def found() -> Traces:
    return all_traces()


@pytest.fixture(scope="module")
def golden() -> Traces:
    traces: Traces = json.loads(GOLDEN.read_text())
    return traces


@pytest.mark.parametrize("name", method_names())
def test_the_trace_is_the_golden_one(name: str, found: Traces, golden: Traces) -> None:
    """If this fails on purpose, renew the file with `python -m tests.methods.trace` and say why in the commit."""
    assert len(found[name]) == len(golden[name]) == 2 * STEPS + 1
    for step, (ours, theirs) in enumerate(zip(found[name], golden[name], strict=True)):
        assert ours == pytest.approx(theirs, rel=1e-7, abs=1e-8), f"update {step}"


def test_every_method_leaves_a_trace_of_its_own(golden: Traces) -> None:
    """Except the two that differ by their clips alone, and adabn, whose target clips move nothing but statistics."""
    losses = {name: tuple(row.get("loss") for row in rows[:-1]) for name, rows in golden.items()}
    assert len(set(losses.values())) == len(losses)
