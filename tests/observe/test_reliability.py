"""Reliability against the same thing said in plain NumPy, and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mmsada_hpc.observe.panels import reliability_svg
from mmsada_hpc.observe.reliability import BINS, reliability


def test_two_bins_by_hand() -> None:
    probabilities = np.array([[0.62, 0.38], [0.68, 0.32], [0.05, 0.95]])
    found = reliability(probabilities, np.array([0, 1, 1]))
    assert found["bins"][6] == [2, 65.0, 50.0]
    assert found["bins"][9] == [1, 95.0, 100.0]
    assert found["ece"] == pytest.approx((2 * 15 + 1 * 5) / 3, abs=1e-4)


def test_it_agrees_with_a_loop_over_the_bins() -> None:
    random = np.random.RandomState(0)
    raw = np.exp(3 * random.normal(size=(500, 16)))
    probabilities, labels = raw / raw.sum(axis=1, keepdims=True), random.randint(0, 8, 500)
    sure, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    found, gap = reliability(probabilities, labels), 0.0
    for index in range(BINS):
        inside = (sure >= index / 10) & ((sure < (index + 1) / 10) | (index == 9))
        count, confidence, accuracy = found["bins"][index]
        assert count == inside.sum()
        if count:
            assert confidence == pytest.approx(100 * sure[inside].mean(), abs=1e-4)
            assert accuracy == pytest.approx(100 * right[inside].mean(), abs=1e-4)
            gap += count / 500 * abs(right[inside].mean() - sure[inside].mean())
    assert sum(count for count, _, _ in found["bins"]) == 500
    assert found["ece"] == pytest.approx(100 * gap, abs=1e-4)


def test_certainty_falls_into_the_last_bin_and_empty_bins_have_no_numbers() -> None:
    found = reliability(np.array([[1.0, 0.0]]), np.array([0]))
    assert found["bins"][9] == [1, 100.0, 100.0]
    assert found["bins"][:9] == [[0, None, None]] * 9
    assert found["ece"] == 0.0


def test_a_spare_output_that_wins_is_a_miss() -> None:
    assert reliability(np.array([[0.1, 0.2, 0.7]]), np.array([1]))["bins"][7] == [1, 70.0, 0.0]


def test_no_segments_give_no_error_and_no_number() -> None:
    assert reliability(np.zeros((0, 4)), np.zeros(0, np.int64))["ece"] is None


def test_the_drawing_has_a_point_for_every_bin_that_holds_something() -> None:
    drawing = reliability_svg(reliability(np.array([[0.62, 0.38], [0.05, 0.95]]), np.array([0, 0]))["bins"])
    assert drawing.count("<circle") == 2
    assert "1 segments: confidence 95.0, accuracy 0.0" in drawing
