"""Recalibration: what cannot be fitted says why, scores at 0 and 1, mended distortion, scikit-learn, test unseen."""

import numpy as np
import pytest

from ehrjax.metrics.recalibration import CannotRecalibrateError, fit_isotonic, fit_platt, recalibrate


def _over_confident(num_rows=4000, seed=0):
    """Labels, and scores whose logits are twice those of the true risks and one too high."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 1, num_rows)
    labels = (rng.random(num_rows) < 1 / (1 + np.exp(-logits))).astype(float)
    return labels, 1 / (1 + np.exp(-(2 * logits + 1)))


@pytest.mark.parametrize("fit", [fit_platt, fit_isotonic])
@pytest.mark.parametrize(
    ("labels", "scores", "why"),
    [
        ([], [], "no validation row"),
        ([1.0], [0.3], "only 1 among 1 validation label: both"),
        ([0.0, 0.0], [0.1, 0.3], "only 0 among 2 validation labels: both"),
        ([0.0, 1.0, 1.0], [0.4, 0.4, 0.4], "the same for every row"),
    ],
)
def test_what_cannot_be_fitted_says_why(fit, labels, scores, why):
    with pytest.raises(CannotRecalibrateError, match=why):
        fit(np.array(labels), np.array(scores))


def test_platt_refuses_separated_and_reversed_scores():
    with pytest.raises(CannotRecalibrateError, match="separate"):
        fit_platt([0, 0, 1, 1], [0.1, 0.2, 0.7, 0.9])
    with pytest.raises(CannotRecalibrateError, match="backwards"):
        fit_platt([1, 1, 0, 1, 0, 0], [0.1, 0.2, 0.3, 0.6, 0.7, 0.9])


def test_platt_finds_the_distortion():
    fit = fit_platt(*_over_confident(20_000))
    assert fit.slope == pytest.approx(0.5, abs=0.03) and fit.intercept == pytest.approx(-0.5, abs=0.05)


@pytest.mark.parametrize("fit", [fit_platt, fit_isotonic])
def test_scores_of_zero_and_one_stay_finite_and_in_order(fit):
    labels, scores = _over_confident(400)
    scores[:5], scores[-5:] = 0.0, 1.0
    fitted = fit(labels, scores.astype(np.float32))
    recalibrated = fitted(np.linspace(0, 1, 101))
    assert (recalibrated > 0).all() and (recalibrated < 1).all() and (np.diff(recalibrated) >= 0).all()


def test_isotonic_is_that_of_scikit_learn_with_ties():
    sklearn = pytest.importorskip("sklearn.isotonic", reason="the reference for isotonic regression")
    labels, scores = _over_confident(500)
    scores = scores.round(2)
    theirs = sklearn.IsotonicRegression(out_of_bounds="clip").fit(scores, labels)
    np.testing.assert_allclose(
        fit_isotonic(labels, scores)(scores), np.clip(theirs.predict(scores), 1 / 502, 1 - 1 / 502), atol=1e-9
    )
    between = np.linspace(0.2, 0.8, 301)  # away from the ends, which ours holds off 0 and 1
    np.testing.assert_allclose(fit_isotonic(labels, scores)(between), theirs.predict(between), atol=1e-9)


def test_figures_improve_and_platt_keeps_the_ranking():
    val, test = _over_confident(seed=1), _over_confident(seed=2)
    masks = [np.ones((len(part[0]), 1), bool) for part in (val, test)]
    found = recalibrate("binary", (*val, masks[0]), (*test, masks[1]))
    before, platt, isotonic = (found.figures[name] for name in ("before", "platt", "isotonic"))
    assert before["calibration_slope"] == pytest.approx(0.5, abs=0.1) and before["ece"] > 0.05
    assert platt["calibration_slope"] == pytest.approx(1, abs=0.15)
    assert abs(platt["calibration_intercept"]) < 0.15 < abs(before["calibration_intercept"])
    for after in (platt, isotonic):
        assert after["ece"] < before["ece"] / 2 and after["brier"] < before["brier"]
    assert platt["fitted_slope"] == pytest.approx(0.5, abs=0.1)
    assert np.array_equal(np.argsort(found.scores["platt"][:, 0]), np.argsort(test[1]))


def test_test_labels_and_masked_labels_do_not_move_the_fit():
    (labels, scores), (test_labels, test_scores) = _over_confident(300, 1), _over_confident(200, 2)
    mask = np.random.default_rng(0).random((300, 1)) < 0.7
    every = np.ones((200, 1), bool)
    first = recalibrate("binary", (labels, scores, mask), (test_labels, test_scores, every))
    changed = np.where(mask[:, 0], labels, np.nan)
    second = recalibrate("binary", (changed, scores, mask), (1 - test_labels, test_scores, every))
    for method, values in first.scores.items():
        np.testing.assert_array_equal(values, second.scores[method])
    assert first.figures["platt"]["brier"] != second.figures["platt"]["brier"]


def test_multilabel_goes_by_output_and_one_that_cannot_be_fitted_keeps_its_scores():
    parts = [_over_confident(500, seed) for seed in (1, 2)]
    val, test = ((np.column_stack([y, np.zeros(500)]), np.column_stack([s, s])) for y, s in parts)
    mask = np.ones((500, 2), bool)
    found = recalibrate("multilabel", (*val, mask), (*test, mask), names=("often", "never"))
    assert found.figures["often"]["platt"]["ece"] < found.figures["often"]["before"]["ece"]
    assert "only 0 among 500 validation labels" in found.figures["never"]["platt"]["reason"]
    assert found.figures["never"]["before"]["calibration_slope"] is None
    np.testing.assert_array_equal(found.scores["platt"][:, 1], test[1][:, 1])
    assert not np.array_equal(found.scores["platt"][:, 0], test[1][:, 0])


def test_no_known_test_row_and_other_kinds():
    labels, scores = _over_confident(300)
    known, none = np.ones((300, 1), bool), np.zeros((300, 1), bool)
    figures = recalibrate("binary", (labels, scores, known), (labels, scores, none)).figures
    assert set(figures["before"].values()) == {None}
    assert recalibrate("binary", (labels, scores, none), (labels, scores, known)).scores == {}
    assert "this one is regression" in recalibrate("regression", None, None).figures["reason"]
