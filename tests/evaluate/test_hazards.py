"""Relative hazards: curves by hand and against lifelines, incidences that sum up, and survival baselines end to end."""

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.optimize import minimize_scalar

from ehrjax.evaluate.bags import Features
from ehrjax.evaluate.baselines import fit_baselines
from ehrjax.evaluate.hazards import CumulativeHazard, incidence_at, marginal_incidence, nelson_aalen

SIZES = {"train": 600, "val": 250, "test": 400}
HORIZONS = (100.0, 365.0)


def _features(seed=0):
    rng = np.random.default_rng(seed)
    return {
        split: Features(
            sp.csr_matrix(rng.poisson(0.7, (n, 10)).astype(np.float32)),
            np.column_stack([rng.uniform(20, 90, n), rng.integers(1, 30, n)]).astype(np.float32),
        )
        for split, n in SIZES.items()
    }


def _survival(features, *, effect=1.0, seed=1, num_causes=1):
    """Exponential times whose log hazard of cause 1 rises with code 3; follow-up ends at a random day."""
    rng = np.random.default_rng(seed)
    labels = {}
    for split, part in features.items():
        signal = effect * np.log1p(part.counts[:, 3].toarray()[:, 0])
        times = [rng.exponential(500 * np.exp(-signal))]
        times += [rng.exponential(700, len(signal)) for _ in range(num_causes - 1)]
        times = np.stack([rng.uniform(50, 600, len(signal)), *times])
        labels[split] = np.column_stack([times.min(axis=0), times.argmin(axis=0)]).astype(np.float32)
    return labels


def test_no_event_has_no_hazard():
    hazard = nelson_aalen(np.array([3.0, 5.0]), np.array([0, 0]))
    assert hazard.at(np.array([0.0, 9.0])).tolist() == [0, 0]
    assert marginal_incidence([3.0, 5.0], [0, 0], 2, [4.0]).tolist() == [[0], [0]]


def test_nelson_aalen_by_hand_with_ties_of_events_and_censoring():
    hazard = nelson_aalen(np.array([1.0, 2.0, 2.0, 2.0, 4.0]), np.array([0, 1, 1, 0, 1]))
    assert hazard.times.tolist() == [2, 4]
    np.testing.assert_allclose(hazard.at(np.array([1.9, 2.0, 4.0])), [0, 0.5, 1.5])


def test_one_cause_is_kaplan_meier_and_several_sum_to_it():
    rng = np.random.default_rng(0)
    times, events = rng.integers(1, 40, 200).astype(float), rng.integers(0, 3, 200)
    horizons = [0.5, 5.0, 17.0, 60.0]
    survival, incidence = 1.0, np.zeros(2)
    curve = {0.0: (survival, incidence)}
    for time in np.unique(times):
        at_risk = (times >= time).sum()
        counts = np.array([((times == time) & (events == cause)).sum() for cause in (1, 2)])
        incidence = incidence + survival * counts / at_risk
        survival *= 1 - counts.sum() / at_risk
        curve[time] = survival, incidence
    at = [curve[max(time for time in curve if time <= horizon)] for horizon in horizons]
    ours = marginal_incidence(times, events, 2, horizons)
    np.testing.assert_allclose(ours, np.transpose([incidence for _, incidence in at]), atol=1e-12)
    np.testing.assert_allclose(marginal_incidence(times, events > 0, 1, horizons)[0], [1 - s for s, _ in at])


def test_incidence_of_one_cause_is_exact_and_of_constant_hazards_known():
    hazard = CumulativeHazard(np.array([1.0, 2.0]), np.array([0.2, 0.5]))
    risks = incidence_at([hazard], np.array([[1.0], [3.0], [0.0]]), [1.0, 2.0])
    np.testing.assert_allclose(risks[:, 0], 1 - np.exp(-np.array([[0.2, 0.7], [0.6, 2.1], [0, 0]])))
    steps = np.arange(1.0, 1001.0)
    constant = [CumulativeHazard(steps, np.full(1000, rate)) for rate in (0.001, 0.002)]
    risks = incidence_at(constant, np.array([[1.0, 1.0], [2.0, 0.5]]), [1000.0, 500.0])
    np.testing.assert_allclose(risks[0, :, 0], (1 - np.exp(-3)) * np.array([1, 2]) / 3, rtol=1e-6)
    np.testing.assert_allclose(risks[1, :, 1], (1 - np.exp(-1.5)) * np.array([2, 1]) / 3, rtol=1e-6)


def test_survival_baselines_find_the_signal_and_are_calibrated():
    features = _features()
    labels = _survival(features)
    fitted = fit_baselines("survival", features, labels, horizons=HORIZONS)
    days, events = labels["test"].T
    code = features["test"].counts[:, 3].toarray()[:, 0]
    for name, baseline in fitted.items():
        risks = baseline.scores["test"]
        assert risks.shape == (SIZES["test"], 1, 2) and (risks >= 0).all() and (risks <= 1).all()
        assert (np.diff(risks[:, 0], axis=1) >= 0).all()
        # 4 standard errors of an observed rate of 0.5 among 400.
        observed = marginal_incidence(days, events, 1, HORIZONS)[0]
        np.testing.assert_allclose(risks[:, 0].mean(axis=0), observed, atol=0.1, err_msg=name)
    assert np.ptp(fitted["prevalence"].scores["test"][:, 0], axis=0).tolist() == [0, 0]
    for name in ("logistic", "boosting"):
        assert np.corrcoef(fitted[name].scores["test"][:, 0, 1], code)[0, 1] > 0.7
    assert abs(np.corrcoef(fitted["visit_count"].scores["test"][:, 0, 1], code)[0, 1]) < 0.2


def test_first_iteration_is_near_the_cox_fit():
    rng = np.random.default_rng(2)
    features, labels = _features(), {}
    for split, part in features.items():
        times = rng.exponential(3000 / part.dense[:, 1])
        ends = rng.uniform(50, 300, len(times))
        labels[split] = np.column_stack([np.minimum(times, ends), times <= ends])
    fitted = fit_baselines("survival", features, labels, horizons=(300.0,), names=("visit_count",))["visit_count"]
    log_count = {split: np.log1p(part.dense[:, 1].astype(float)) for split, part in features.items()}
    times, is_event = labels["train"][:, 0], labels["train"][:, 1] == 1
    is_at_risk = times >= times[is_event][:, None]

    def negative_partial_likelihood(slope):
        risk = np.exp(slope * log_count["train"])
        return np.log(is_at_risk @ risk).sum() - slope * log_count["train"][is_event].sum()

    cox = minimize_scalar(negative_partial_likelihood).x
    log_hazard = np.log(-np.log1p(-fitted.scores["test"][:, 0, 0]))
    assert cox > 0.6 and np.polyfit(log_count["test"], log_hazard, 1)[0] == pytest.approx(cox, rel=0.2)


def test_competing_causes_sum_to_at_most_one_and_a_cause_without_events_has_no_risk():
    features = _features()
    labels = _survival(features, num_causes=2)
    fitted = fit_baselines("survival", features, labels, num_classes=3, horizons=HORIZONS)
    for baseline in fitted.values():
        risks = baseline.scores["val"]
        assert risks.shape == (SIZES["val"], 3, 2) and (risks.sum(axis=1) <= 1 + 1e-9).all()
        assert (risks[:, 2] == 0).all() and (risks[:, :2, 1] > 0).all()


def test_all_censored_leaves_kaplan_meier_alone():
    features = _features()
    labels = {split: np.column_stack([np.full(n, 30.0), np.zeros(n)]) for split, n in SIZES.items()}
    fitted = fit_baselines("survival", features, labels, horizons=HORIZONS)
    assert (fitted["prevalence"].scores["test"] == 0).all()
    for name in ("visit_count", "logistic", "boosting"):
        assert fitted[name].scores is None and fitted[name].reason == "train holds no event"


def test_no_known_row_and_no_horizon():
    features = _features()
    labels = {split: np.full((n, 2), np.nan) for split, n in SIZES.items()}
    fitted = fit_baselines("survival", features, labels, horizons=HORIZONS)
    assert {b.reason for b in fitted.values()} == {"no row of train has a known label"}
    with pytest.raises(ValueError, match="horizons"):
        fit_baselines("survival", features, _survival(features))


def test_nothing_after_the_last_horizon_nor_masked_nor_of_test_is_used():
    features = _features()
    labels = _survival(features)
    masks = {split: np.repeat(np.random.default_rng(0).random((n, 1)) < 0.8, 2, axis=1) for split, n in SIZES.items()}
    options = {"horizons": HORIZONS, "names": ("prevalence", "logistic")}
    first = fit_baselines("survival", features, labels, masks, **options)
    changed = {split: np.where(values[:, :1] > 365, [[9999.0, 1.0]], values) for split, values in labels.items()}
    changed = {split: np.where(masks[split], values, 7.0) for split, values in changed.items()}
    changed["test"] = np.full_like(changed["test"], np.nan)
    second = fit_baselines("survival", features, changed, masks, num_classes=1, **options)
    for name, baseline in first.items():
        np.testing.assert_array_equal(baseline.scores["test"], second[name].scores["test"])
