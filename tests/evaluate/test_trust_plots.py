"""Figures of trust are written, also for empty, constant and one-class sets."""

import numpy as np
import pytest
from matplotlib.image import imread

from ehrjax.evaluate.trust_plots import decision, reliability_with_histogram
from ehrjax.metrics.decision import decision_curve


def _rows(num_rows):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, num_rows).astype(float)
    return labels, np.clip(0.3 * labels + 0.5 * rng.random(num_rows), 0, 1)


def _is_drawn(path):
    return imread(path)[..., :3].min() < 0.5


@pytest.mark.parametrize("num_rows", [0, 1, 200])
def test_calibration_of_several_systems(tmp_path, num_rows):
    labels, scores = _rows(num_rows)
    systems = {"model": scores, "Platt": scores**2, "prevalence": np.full(num_rows, 0.5)}
    reliability_with_histogram(tmp_path / "calibration.png", labels, systems)
    assert _is_drawn(tmp_path / "calibration.png")


def test_calibration_of_nothing(tmp_path):
    reliability_with_histogram(tmp_path / "calibration.png", np.zeros(0), {})
    assert _is_drawn(tmp_path / "calibration.png")


@pytest.mark.parametrize("num_rows", [0, 1, 200])
def test_decision_curves(tmp_path, num_rows):
    labels, scores = _rows(num_rows)
    decision(tmp_path / "decision.png", decision_curve(labels, {"model": scores, "boosting": scores**2}))
    assert _is_drawn(tmp_path / "decision.png")


def test_decision_curve_without_a_positive(tmp_path):
    decision(tmp_path / "decision.png", decision_curve(np.zeros(20), {"model": np.linspace(0, 1, 20)}))
    assert _is_drawn(tmp_path / "decision.png")
