"""Decision curves: empty and one-class sets, the definition row by row, treating all and none."""

import numpy as np
import pytest

from ehrjax.metrics.decision import THRESHOLDS, decision_curve, net_benefit


def test_no_rows_are_undefined():
    assert np.isnan(net_benefit([], [], [0.2, 0.5])).all()


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.2, np.nan])
def test_thresholds_at_the_ends_are_refused(threshold):
    with pytest.raises(ValueError, match="between 0 and 1"):
        net_benefit([0, 1], [0.2, 0.4], [threshold])


def test_scores_must_be_probabilities():
    with pytest.raises(ValueError, match="not a probability"):
        net_benefit([0, 1], [0.2, 1.4])


def test_equals_the_definition_with_ties_at_thresholds_in_any_order():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 11, 200) / 10, rng.integers(0, 2, 200)
    thresholds = np.array([0.7, 0.05, 0.3, 0.5])
    expected = [
        np.mean((scores >= t) & (labels == 1)) - np.mean((scores >= t) & (labels == 0)) * t / (1 - t)
        for t in thresholds
    ]
    np.testing.assert_allclose(net_benefit(labels, scores, thresholds), expected)


def test_treating_all_costs_false_positives_and_treating_none_nothing():
    labels = np.array([1, 0, 0, 0])
    curve = decision_curve(labels, {"perfect": labels.astype(float), "prevalence": np.full(4, 0.25)})
    assert (curve.net_benefit["treat none"] == 0).all()
    np.testing.assert_allclose(curve.net_benefit["treat all"], 0.25 - 0.75 * THRESHOLDS / (1 - THRESHOLDS))
    np.testing.assert_allclose(curve.net_benefit["perfect"], 0.25)
    np.testing.assert_allclose(
        curve.net_benefit["prevalence"], np.maximum(curve.net_benefit["treat all"], 0), atol=1e-12
    )


def test_all_positive():
    curve = decision_curve([1, 1], {"model": np.array([0.2, 0.9])}, [0.5])
    assert curve.net_benefit["model"].tolist() == [0.5] and curve.net_benefit["treat all"].tolist() == [1.0]
