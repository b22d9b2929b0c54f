"""Survival curves: empty and odd cases, then agreement with lifelines under ties, censoring and weights."""

import warnings

import numpy as np
import pytest

from ehrjax.metrics.survival_curves import (
    aalen_johansen,
    aalen_johansen_interval,
    kaplan_meier,
    kaplan_meier_interval,
    life_table,
)


def _rows(seed, num_rows=80, num_causes=1, *, days=15, censored=0.6):
    rng = np.random.default_rng(seed)
    events = np.where(rng.random(num_rows) < censored, 0, rng.integers(1, num_causes + 1, num_rows))
    return rng.integers(1, days, num_rows).astype(float), events


def test_no_rows():
    curve = kaplan_meier([], [])
    assert len(curve.times) == 0 and np.isnan(curve.at(3.0))
    assert aalen_johansen([], []).incidence.shape == (0, 0)
    assert aalen_johansen([], [], num_causes=2).at([1.0]).shape == (1, 2)
    assert [len(bound) for bound in kaplan_meier_interval([], []) + aalen_johansen_interval([], [])] == [0] * 4


def test_one_row():
    died, censored = kaplan_meier([5.0], [1]), kaplan_meier([5.0], [0])
    assert died.at([4.9, 5.0, 9.0]).tolist() == [1.0, 0.0, 0.0]
    assert censored.at([0.0, 5.0]).tolist() == [1.0, 1.0] and np.isnan(censored.at(5.1))


def test_all_censored_has_no_interval():
    low, high = kaplan_meier_interval([1.0, 2.0], [0, 0])
    assert np.isnan(low).all() and np.isnan(high).all()
    assert aalen_johansen([1.0, 2.0], [0, 0], num_causes=1).incidence.tolist() == [[0.0], [0.0]]


def test_incidence_past_the_last_time_is_known_only_when_nobody_is_left():
    assert aalen_johansen([1.0, 2.0], [1, 2]).at(9.0).tolist() == [0.5, 0.5]
    assert np.isnan(aalen_johansen([1.0, 2.0], [1, 0]).at(9.0)).all()
    table, ones = life_table([1.0, 2.0], [1, 0]), np.ones((2, 1))
    assert table.incidence_at(ones, 1, 2.0) == [0.5] and np.isnan(table.incidence_at(ones, 1, 2.5)).all()
    assert life_table([1.0, 2.0], [1, 2]).incidence_at(ones, 1, 9.0) == [0.5]


@pytest.mark.parametrize(
    ("times", "events", "match"),
    [
        ([1.0, -1.0], [0, 1], "time -1 in row 1"),
        ([1.0, np.nan], [0, 1], "time nan in row 1"),
        ([1.0, 2.0], [0.5, 1], "event 0.5 in row 0"),
        ([1.0], [0, 1], "one of each a row"),
    ],
)
def test_bad_labels_are_named(times, events, match):
    with pytest.raises(ValueError, match=match):
        kaplan_meier(times, events)


@pytest.mark.parametrize("seed", range(4))
def test_weights_are_copies(seed):
    times, events = _rows(seed, num_causes=2)
    copies = np.random.default_rng(seed).integers(0, 4, len(times))
    grid = np.arange(14.0)
    for curve in (kaplan_meier, aalen_johansen):
        weighted = curve(times, events, copies).at(grid)
        assert np.allclose(weighted, curve(np.repeat(times, copies), np.repeat(events, copies)).at(grid), atol=1e-12)


def test_causes_and_survival_sum_to_one():
    times, events = _rows(0, num_causes=3)
    total = aalen_johansen(times, events).incidence.sum(axis=1)
    assert np.allclose(total, 1 - kaplan_meier(times, events).survival, atol=1e-12)


def test_events_come_before_censorings_of_the_same_day():
    table = life_table([2.0, 2.0, 3.0], [1, 0, 0])
    # Of the three, the one with the event is no longer at risk of being censored on day 2.
    assert table.uncensored_before(np.ones((3, 1)))[:, 0].tolist() == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("censored", [0.0, 0.5, 0.95])
def test_kaplan_meier_agrees_with_lifelines(seed, censored):
    lifelines = pytest.importorskip("lifelines", reason="the reference for survival curves")
    times, events = _rows(seed, censored=censored)
    weights = np.random.default_rng(seed).integers(1, 4, len(times))
    theirs = lifelines.KaplanMeierFitter().fit(times, events, weights=weights)
    ours = kaplan_meier(times, events, weights)
    assert np.allclose(theirs.survival_function_at_times(ours.times), ours.survival, rtol=0, atol=1e-9)
    theirs = lifelines.KaplanMeierFitter().fit(times, events).confidence_interval_.to_numpy()[1:]
    for bound, column in zip(kaplan_meier_interval(times, events), theirs.T, strict=True):
        inside = np.isfinite(bound)
        assert inside.any() or not events.any()
        assert np.allclose(bound[inside], column[inside], rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_aalen_johansen_agrees_with_lifelines(seed):
    lifelines = pytest.importorskip("lifelines", reason="the reference for survival curves")
    times, events = _rows(seed, num_causes=2)
    times = times + np.where(events > 0, events * 0.25, 0.0)  # lifelines moves tied events of unlike causes at random
    ours = aalen_johansen(times, events)
    for cause in (1, 2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its logarithms of 0 and 1
            theirs = lifelines.AalenJohansenFitter().fit(times, events, event_of_interest=cause)
        at_times = theirs.cumulative_density_.iloc[:, 0].loc[ours.times].to_numpy()
        assert np.allclose(at_times, ours.incidence[:, cause - 1], rtol=0, atol=1e-9)
        bounds = np.sort(theirs.confidence_interval_.loc[ours.times].to_numpy(), axis=1)
        low, high = aalen_johansen_interval(times, events, cause)
        inside = np.isfinite(low) & np.isfinite(bounds).all(axis=1)
        assert inside.any()
        assert np.allclose(np.stack([low, high], axis=1)[inside], bounds[inside], rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_aalen_johansen_agrees_with_scikit_survival_on_tied_causes(seed):
    nonparametric = pytest.importorskip("sksurv.nonparametric", reason="the reference for tied causes")
    times, events = _rows(seed, num_causes=3)
    theirs = nonparametric.cumulative_incidence_competing_risks(events, times)
    ours = aalen_johansen(times, events)
    assert np.array_equal(theirs[0], ours.times)
    assert np.allclose(theirs[1][1:].T, ours.incidence, rtol=0, atol=1e-9)
