"""Summaries of irregular measurements against plain loops; the quantile transform: what it is fitted on, ties, gaps."""

import numpy as np
import pytest
from scipy.stats import linregress

from ehrjax.data.vital_summaries import RECENT_STATISTICS, WINDOW_STATISTICS, QuantileTransform, Summaries, summarize
from ehrjax.data.vitals import Measurements

NAMES = ("heart_rate", "lactate", "never_measured")


def make_measurements(rows, *, window_hours=48.0):
    """From (hours, variable, value) triples of each row, in the order of time."""
    flat = [triple for row in rows for triple in row]
    hours, variable, value = zip(*flat, strict=True) if flat else ((), (), ())
    return Measurements(
        names=NAMES,
        offsets=np.cumsum([0, *map(len, rows)]),
        hours=np.array(hours, np.float32),
        variable=np.array(variable, np.int32),
        value=np.array(value, np.float32),
        window_hours=np.full(len(rows), window_hours, np.float32),
        counts={},
    )


def random_measurements(seed=0, num_rows=12):
    rng = np.random.default_rng(seed)
    rows = []
    for num in [0, 1, 2, *rng.integers(3, 30, num_rows - 3)]:
        hours = np.sort(rng.choice(np.linspace(0, 48, 97), num))
        rows.append(list(zip(hours, rng.integers(0, 2, num), rng.lognormal(3, 1, num), strict=True)))
    return make_measurements(rows)


def naive(hours, values):
    """Every statistic of one variable's measurements in a window of 48 hours."""
    if not len(hours):
        return dict.fromkeys(WINDOW_STATISTICS, np.nan) | {"count": 0}
    has_slope = len(hours) >= 3 and hours.std() >= 0.5
    return {
        "count": len(hours),
        "first": values[0],
        "last": values[-1],
        "min": values.min(),
        "max": values.max(),
        "mean": values.mean(),
        "slope": linregress(hours, values).slope if has_slope else np.nan,
        "hours_since": 48 - hours[-1],
    }


# Summaries


@pytest.mark.parametrize("rows", [[], [[], []]])
def test_no_row_and_no_measurement(rows):
    summaries = summarize(make_measurements(rows))
    assert summaries.values.shape == (len(rows), len(summaries.names)) == (len(rows), 3 * (8 + 4 + 4))
    is_count = np.array(["/count" in name for name in summaries.names])
    assert (summaries.values[:, is_count] == 0).all() and np.isnan(summaries.values[:, ~is_count]).all()


def test_every_statistic_equals_a_plain_loop():
    measurements = random_measurements()
    summaries = summarize(measurements)
    place = {name: i for i, name in enumerate(summaries.names)}
    for row, (start, end) in enumerate(zip(measurements.offsets[:-1], measurements.offsets[1:], strict=True)):
        for k, name in enumerate(NAMES):
            chosen = start + np.flatnonzero(measurements.variable[start:end] == k)
            hours, values = measurements.hours[chosen].astype(float), measurements.value[chosen].astype(float)
            for suffix, recent, statistics in (
                ("", 48, WINDOW_STATISTICS),
                ("_24h", 24, RECENT_STATISTICS),
                ("_12h", 12, RECENT_STATISTICS),
            ):
                is_recent = hours >= 48 - recent
                expected = naive(hours[is_recent], values[is_recent])
                found = {s: summaries.values[row, place[f"{name}/{s}{suffix}"]] for s in statistics}
                np.testing.assert_allclose(
                    [found[s] for s in statistics], [expected[s] for s in statistics], rtol=1e-4, atol=1e-5
                )


def test_a_slope_needs_measurements_that_are_apart():
    rising = [(hour, 0, 60.0 + 2 * hour) for hour in (0.0, 1.0, 5.0)]
    close = [(hour, 0, 60.0 + 2 * hour) for hour in (1.0, 1.0, 1.1)]
    summaries = summarize(make_measurements([rising, rising[:2], close]))
    slopes = summaries.values[:, summaries.names.index("heart_rate/slope")]
    np.testing.assert_allclose(slopes, [2.0, np.nan, np.nan], rtol=1e-5)


@pytest.mark.parametrize("triple", [(48.5, 0, 80.0), (-0.5, 0, 80.0), (3.0, 0, np.nan)])
def test_measurements_outside_the_window_are_refused(triple):
    with pytest.raises(ValueError, match=r"row 1: heart_rate = .* of a window of 48 h"):
        summarize(make_measurements([[(1.0, 1, 2.0)], [triple]]))
    with pytest.raises(ValueError, match="each must be above 0"):
        summarize(make_measurements([[]]), recent_hours=(24, 0))


def test_windows_of_different_lengths_count_back_from_their_own_end():
    measurements = make_measurements([[(2.0, 0, 80.0), (9.0, 0, 90.0)]] * 2)
    measurements = measurements._replace(window_hours=np.array([10.0, 48.0], np.float32))
    summaries = summarize(measurements, recent_hours=(3,))
    table = {name: summaries.values[:, i].tolist() for i, name in enumerate(summaries.names)}
    assert table["heart_rate/hours_since"] == [1.0, 39.0]
    assert table["heart_rate/count_3h"] == [1.0, 0.0]


# Quantile transform


def table(values, names=None):
    values = np.asarray(values, np.float32)
    return Summaries(tuple(names or (f"x{i}" for i in range(values.shape[1]))), values)


def test_scores_are_those_of_the_ranks_whatever_the_scale():
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(4000, 1))
    transform = QuantileTransform.fit_summaries(table(np.exp(2 * normal)), np.arange(4000))
    scores = transform.encode_summaries(table(np.exp(2 * normal)))
    inner = np.abs(normal) < 2
    np.testing.assert_allclose(scores[inner], normal[inner], atol=0.1)
    assert np.abs(transform.encode_summaries(table([[-1e9], [1e9]]))).max() < 2.9


def test_ties_share_the_middle_of_their_ranks_and_missing_is_the_median():
    values = np.array([[0.0]] * 50 + [[1.0]] * 50)
    transform = QuantileTransform.fit_summaries(table(values), np.arange(100))
    low, high, missing = transform.encode_summaries(table([[0.0], [1.0], [np.nan]]))[:, 0]
    np.testing.assert_allclose([low, high], [-0.674, 0.674], atol=0.03)
    assert missing == 0


def test_columns_that_say_nothing_of_the_train_rows_are_left_out():
    values = np.full((20, 4), np.nan)
    values[:, 0] = np.arange(20)
    values[:, 1] = 7.0
    values[:1, 2] = 3.0
    values[10:, 3] = np.arange(10)
    transform = QuantileTransform.fit_summaries(table(values), np.arange(10))
    assert transform.is_used.tolist() == [True, False, False, False]
    assert transform.encode_summaries(table(values)).shape == (20, 1)


def test_only_train_rows_are_seen():
    values = np.random.default_rng(0).normal(size=(30, 3))
    changed = values.copy()
    changed[20:] = 1e6
    one, other = (QuantileTransform.fit_summaries(table(v), np.arange(30) < 20) for v in (values, changed))
    np.testing.assert_array_equal(one.quantiles, other.quantiles)
    measurements = random_measurements()
    altered = measurements.value.copy()
    altered[measurements.offsets[6] :] *= 10
    one, other = (
        QuantileTransform.fit_measurements(m, np.arange(6))
        for m in (measurements, measurements._replace(value=altered))
    )
    np.testing.assert_array_equal(one.quantiles, other.quantiles)
    with pytest.raises(ValueError, match="none of the 30 rows is a train row"):
        QuantileTransform.fit_summaries(table(values), np.zeros(30, bool))


def test_measurements_keep_their_order_and_a_variable_never_seen_scores_zero():
    measurements = random_measurements()
    transform = QuantileTransform.fit_measurements(measurements, np.arange(12))
    encoded = transform.encode_measurements(measurements)
    for k in (0, 1):
        of_k = measurements.variable == k
        np.testing.assert_array_equal(np.argsort(encoded.value[of_k]), np.argsort(measurements.value[of_k]))
    unseen = measurements._replace(variable=np.full_like(measurements.variable, 2))
    assert (transform.encode_measurements(unseen).value == 0).all()
    assert encoded.offsets is measurements.offsets


def test_saved_and_loaded(tmp_path):
    measurements = random_measurements()
    transform = QuantileTransform.fit_measurements(measurements, np.arange(12))
    transform.save(tmp_path / "quantiles.npz")
    loaded = QuantileTransform.load(tmp_path / "quantiles.npz")
    assert loaded.names == transform.names
    np.testing.assert_array_equal(loaded.quantiles, transform.quantiles)
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 not an archive")
    with pytest.raises(ValueError, match=r"broken\.npz: is not a saved quantile transform"):
        QuantileTransform.load(tmp_path / "broken.npz")
    with pytest.raises(FileNotFoundError):
        QuantileTransform.load(tmp_path / "absent.npz")


def test_other_columns_than_those_fitted_are_refused():
    transform = QuantileTransform.fit_summaries(table(np.eye(3)), np.arange(3), min_present=0.0)
    with pytest.raises(ValueError, match="'x1' became 'y'"):
        transform.encode_summaries(table(np.eye(3), names=("x0", "y", "x2")))
    with pytest.raises(ValueError, match="2 of 3"):
        transform.encode_summaries(table(np.eye(3)[:, :2]))
