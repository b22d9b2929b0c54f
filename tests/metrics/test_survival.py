"""Survival metrics: undefined cases, a naive reference with weights, agreement with lifelines and scikit-survival."""

import numpy as np
import pytest

from ehrjax.metrics import survival as ours
from ehrjax.metrics.bootstrap import bootstrap, paired_difference, resample_weights
from ehrjax.metrics.survival_curves import life_table

HORIZONS = (3.0, 6.0, 9.5)
NEITHER = ([], np.zeros((0, 2)))


def _rows(seed, num_rows=60, num_causes=1, *, days=12, censored=0.7):
    """Labels with many ties in time, and risks of few distinct values."""
    rng = np.random.default_rng(seed)
    events = np.where(rng.random(num_rows) < censored, 0, rng.integers(1, num_causes + 1, num_rows))
    labels = np.column_stack([rng.integers(1, days, num_rows), events]).astype(float)
    return labels, rng.integers(0, 8, num_rows) / 8.0


def _incidences(seed, num_rows=60):
    return np.sort(np.random.default_rng(seed + 100).integers(0, 9, (num_rows, len(HORIZONS))) / 8.0, axis=1)


def _naive_pairs(labels, risks, weights, cause=1, tau=np.inf, power=0):
    """All ordered pairs one by one; `power` 2 gives Uno's weights."""
    times, events = labels.T
    table = life_table(times, events.astype(int))
    free = table.uncensored_before(weights[:, None])[table.place, 0]
    won = total = 0.0
    for i in np.flatnonzero((events == cause) & (times < tau) & (weights > 0)):
        for j in np.flatnonzero(weights):
            later = times[j] > times[i] or (times[j] == times[i] and events[j] == 0)
            gone = events[j] not in (0, cause) and not later
            if later or gone:
                chance = (free[i] * (free[j] if gone else free[i])) ** (power / 2)
                total += weights[i] * weights[j] / chance
                won += weights[i] * weights[j] / chance * (0.5 * (risks[i] >= risks[j]) + 0.5 * (risks[i] > risks[j]))
    return won / total if total else np.nan


@pytest.mark.parametrize("labels", NEITHER)
def test_no_rows_is_nan(labels):
    for metric in ours.survival_metrics(HORIZONS).values():
        assert np.isnan(metric(labels, np.zeros((0, 3))))


@pytest.mark.parametrize(
    "labels",
    [
        [[5, 1]],  # one row
        [[5, 0], [12, 0], [12, 0]],  # all censored
        [[12, 2], [13, 2], [2, 2]],  # no event of the cause
    ],
)
def test_without_a_case_discrimination_is_undefined(labels):
    metrics = ours.survival_metrics(HORIZONS)
    for name in ("c_index", "c_index_ipcw", "mean_auc", "auc_3d", "auc_9.5d"):
        assert np.isnan(metrics[name](labels, np.full((len(labels), 3), 0.5))), name


def test_events_of_one_day_are_no_comparable_pair():
    assert np.isnan(ours.concordance([[3, 1], [3, 1]], [0.1, 0.2]))
    assert ours.concordance([[3, 1], [3, 0]], [0.2, 0.1]) == 1.0  # but the censored one outlives the other
    assert np.isnan(ours.concordance([[3, 1], [2, 0]], [0.2, 0.1]))


def test_constant_risk_is_chance():
    labels, _ = _rows(0)
    for metric in (ours.concordance, ours.concordance_ipcw):
        assert metric(labels, np.full(60, 0.3)) == pytest.approx(0.5)
    assert ours.auc_ipcw(labels, np.full(60, 0.3), horizons=HORIZONS, column=1) == pytest.approx(0.5)


def test_a_competing_event_stays_in_the_risk_set():
    labels = [[5, 1], [2, 2]]
    for metric in (ours.concordance, ours.concordance_ipcw):
        assert metric(labels, [0.9, 0.1]) == 1.0 and metric(labels, [0.1, 0.9]) == 0.0
    assert ours.auc_ipcw(labels, [0.9, 0.1], horizons=(6.0,)) == 1.0
    assert ours.brier_ipcw(labels, [1.0, 0.0], horizons=(6.0,)) == 0.0


def test_follow_up_cut_at_the_horizon_decides_it():
    labels = [[10, 1], [10, 0], [10, 0], [4, 1]]
    assert ours.brier_ipcw(labels, [1.0, 0.0, 0.0, 1.0], horizons=(10.0,)) == 0.0
    assert ours.auc_ipcw(labels, [0.9, 0.1, 0.2, 0.8], horizons=(10.0,)) == 1.0
    for metric in (ours.brier_ipcw, ours.auc_ipcw):
        assert np.isnan(metric(labels, [0.9, 0.1, 0.2, 0.8], horizons=(10.5,)))


@pytest.mark.parametrize(
    ("labels", "scores", "match"),
    [
        ([[1, 1], [2, 0]], [0.1], "scores have shape"),
        ([[1, 1], [2, 0]], [0.1, np.nan], "non-finite value in row 1"),
        ([1, 2], [0.1, 0.2], "labels have shape"),
        ([[1, 1], [-2, 0]], [0.1, 0.2], "time -2 in row 1"),
    ],
)
def test_bad_input_is_named(labels, scores, match):
    with pytest.raises(ValueError, match=match):
        ours.concordance(labels, scores)


def test_bad_horizons_are_named():
    labels, _ = _rows(0)
    with pytest.raises(ValueError, match="ascending"):
        ours.survival_metrics((5, 3))
    with pytest.raises(ValueError, match="2 columns for 3 horizons"):
        ours.brier_ipcw(labels, np.zeros((60, 2)), horizons=HORIZONS)
    with pytest.raises(ValueError, match=r"score 1.5 in row 0 is not a probability"):
        ours.brier_ipcw(labels, np.full(60, 1.5), horizons=HORIZONS)
    with pytest.raises(ValueError, match="two or more"):
        ours.integrated_brier(labels, np.zeros(60), horizons=(3.0,))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("num_causes", [1, 2])
def test_concordance_of_weighted_rows_is_that_of_naive_pairs(seed, num_causes):
    labels, risks = _rows(seed, num_causes=num_causes, censored=0.4)
    weights = np.random.default_rng(seed).integers(0, 4, len(risks)).astype(float)
    for cause in range(1, num_causes + 1):
        for factor in (1.0, 0.37):  # a weight need not be a count
            value = ours.concordance(labels, risks, factor * weights, cause=cause)
            assert value == pytest.approx(_naive_pairs(labels, risks, weights, cause), abs=1e-9)
            value = ours.concordance_ipcw(labels, risks, factor * weights, tau=8.0, cause=cause)
            assert value == pytest.approx(_naive_pairs(labels, risks, weights, cause, 8.0, 2), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_causes", [1, 2])
def test_weights_are_copies(seed, num_causes):
    labels, _ = _rows(seed, num_causes=num_causes)
    scores, copies = _incidences(seed), np.random.default_rng(seed).integers(0, 4, len(labels))
    for name, metric in ours.survival_metrics(HORIZONS).items():
        if not name.startswith("calibration_error"):  # its groups are those of the rows as they are given
            value = metric(np.repeat(labels, copies, axis=0), np.repeat(scores, copies, axis=0))
            assert metric(labels, scores, copies) == pytest.approx(value, abs=1e-9, nan_ok=True), name


def test_a_block_of_weightings_is_each_of_them():
    labels, _ = _rows(1)
    weights = next(resample_weights(np.arange(60), num_resamples=5))
    for name, metric in ours.survival_metrics(HORIZONS).items():
        each = [metric(labels, _incidences(1), column) for column in weights.T]
        assert np.allclose(metric(labels, _incidences(1), weights.T), each, atol=1e-12, equal_nan=True), name


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("censored", [0.0, 0.5, 0.95])
def test_concordance_agrees_with_lifelines_and_scikit_survival(seed, censored):
    utils = pytest.importorskip("lifelines.utils", reason="a reference for concordance")
    metrics = pytest.importorskip("sksurv.metrics", reason="a reference for concordance")
    labels, risks = _rows(seed, censored=censored)
    value = ours.concordance(labels, risks)
    assert value == pytest.approx(utils.concordance_index(labels[:, 0], -risks, labels[:, 1]), abs=1e-9)
    theirs = metrics.concordance_index_censored(labels[:, 1] == 1, labels[:, 0], risks)[0]
    assert value == pytest.approx(theirs, abs=1e-9)


@pytest.fixture(params=range(8))
def references(request):
    """scikit-survival, its labels, and ours. Its ties of an event with a censoring are broken as here, event first."""
    metrics = pytest.importorskip("sksurv.metrics", reason="the reference for metrics under censoring")
    from sksurv.util import Surv

    labels, _ = _rows(request.param, censored=(0.3, 0.7)[request.param % 2])
    labels[:2] = [[12, 0], [12, 1]]  # it needs follow-up past all horizons
    moved = labels[:, 0] + 0.25 * (labels[:, 1] == 0)
    return metrics, Surv.from_arrays(labels[:, 1] == 1, moved), labels, _incidences(request.param)


def test_uno_agrees_with_scikit_survival(references):
    metrics, surv, labels, scores = references
    for tau in HORIZONS:
        theirs = metrics.concordance_index_ipcw(surv, surv, scores[:, -1], tau=tau)[0]
        assert ours.concordance_ipcw(labels, scores, tau=tau) == pytest.approx(theirs, abs=1e-9)


def test_auc_agrees_with_scikit_survival(references):
    metrics, surv, labels, scores = references
    areas, mean = metrics.cumulative_dynamic_auc(surv, surv, scores, HORIZONS)
    for column, area in enumerate(areas):
        assert ours.auc_ipcw(labels, scores, horizons=HORIZONS, column=column) == pytest.approx(area, abs=1e-9)
    assert ours.mean_auc(labels, scores, horizons=HORIZONS) == pytest.approx(mean, abs=1e-9)


def test_brier_agrees_with_scikit_survival(references):
    metrics, surv, labels, scores = references
    _, theirs = metrics.brier_score(surv, surv, 1 - scores, HORIZONS)
    for column, score in enumerate(theirs):
        assert ours.brier_ipcw(labels, scores, horizons=HORIZONS, column=column) == pytest.approx(score, abs=1e-9)
    theirs = metrics.integrated_brier_score(surv, surv, 1 - scores, HORIZONS)
    assert ours.integrated_brier(labels, scores, horizons=HORIZONS) == pytest.approx(theirs, abs=1e-9)


def test_censoring_weights_undo_censoring_under_competing_causes():
    rng = np.random.default_rng(0)
    hazards = rng.gamma(2.0, 0.5, (20_000, 2))
    first = rng.exponential(1 / hazards)
    times, events = first.min(axis=1), 1 + first.argmin(axis=1)
    ends = rng.exponential(2.0, len(times))
    complete = np.column_stack([times, events])
    censored = np.column_stack([np.minimum(times, ends), np.where(times <= ends, events, 0)])
    risks = hazards[:, 0] / (1 + hazards.max())
    for metric in (ours.auc_ipcw, ours.brier_ipcw):
        assert metric(censored, risks, horizons=(1.0,)) == pytest.approx(
            metric(complete, risks, horizons=(1.0,)), abs=0.01
        )
    truth = ours.concordance_ipcw(complete, risks, tau=1.0)
    assert ours.concordance_ipcw(censored, risks, tau=1.0) == pytest.approx(truth, abs=0.01)


def test_random_hazards_give_chance_whatever_the_number_of_visits():
    rng = np.random.default_rng(0)
    hazards, ends = rng.gamma(2.0, 0.5, 20_000), rng.exponential(1.0, 20_000)
    times = rng.exponential(1 / hazards)
    labels = np.column_stack([np.minimum(times, ends), times <= ends])
    past_visits, later_visits = rng.poisson(rng.gamma(2.0, 5.0, 20_000)), rng.poisson(5 * labels[:, 0])
    for metric in (ours.concordance, lambda y, s: ours.concordance_ipcw(y, s, tau=2.0)):
        for risks in (rng.random(20_000), past_visits):
            assert metric(labels, risks) == pytest.approx(0.5, abs=0.015)
        assert metric(labels, hazards) > 0.6
        # Visits counted past the index tell the time: what a leak looks like.
        assert metric(labels, -later_visits) > 0.7


def test_bootstrap_by_patient_takes_every_metric():
    labels, _ = _rows(3, num_rows=90, num_causes=2, censored=0.4)
    subjects, scores = np.repeat(np.arange(30), 3), _incidences(3, 90)
    intervals = bootstrap(ours.survival_metrics(HORIZONS, cause=2), labels, scores, subjects, num_resamples=60)
    for name, interval in intervals.items():
        assert interval.low <= interval.value <= interval.high, (name, interval)
    metric = {"c_index": ours.concordance}
    same = paired_difference(metric, labels, scores, scores, subjects, num_resamples=20)["c_index"]
    assert same[:3] == (0.0, 0.0, 0.0)
