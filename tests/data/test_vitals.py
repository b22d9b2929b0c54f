"""Measurements before index times, on a grid: what is used, what is not, and what was fitted on whom."""

import dataclasses
import json

import numpy as np
import pytest

from ehrjax.data.build import build_store
from ehrjax.data.variables import VITALS, load_variables
from ehrjax.data.vitals import Measurements, Scaler, Statics, collect_measurements, collect_statics, to_grid
from tests.data.helpers import make_store, seconds

HR, SYS, TEMP = "VITAL//LOINC//8867-4", "VITAL//LOINC//8480-6", "VITAL//LOINC//8310-5"
CARE = "ICU_ADMISSION//Medical"
NAMES = ("heart_rate", "temperature")
EVENTS = [
    (1, "1950-01-01", "MEDS_BIRTH", None, None),
    (1, None, "GENDER//M", None, None),
    (1, "2020-01-01 00:00", "ENCOUNTER//inpatient", None, 10),
    (1, "2020-01-01 00:00", CARE, None, 10),
    (1, "2020-01-01 00:30", HR, 80.0, 10),
    (1, "2020-01-01 00:40", HR, 90.0, 10),
    (1, "2020-01-01 03:00", HR, 100.0, 10),
    (1, "2020-01-01 02:10", TEMP, 98.6, 10),
    (1, "2020-01-01 02:20", TEMP, -17.8, 10),
    (1, "2020-01-01 02:20", SYS, None, 10),
    (1, "2020-01-01 05:00", "VITAL//LOINC//8302-2", 170.0, 10),
    (2, "2020-01-01 00:00", "ENCOUNTER//inpatient", None, 20),
    (2, None, "GENDER//F", None, None),
    (3, "2020-01-01 01:00", "ENCOUNTER//inpatient", None, 30),
    (3, "2020-01-01 01:00", HR, 60.0, 30),
    (3, "2020-01-01 01:00", "ICU_ADMISSION//Coronary", None, 30),
    (3, "2020-01-01 01:05", "VITAL//LOINC//29463-7", 70.0, 30),
]


def collect(store, rows, *, names=NAMES, window_hours=4.0, starts=None):
    """Measurements of index rows (subject, ISO time)."""
    ids, times = np.array([r[0] for r in rows], np.int64), np.array([seconds(r[1]) for r in rows], np.int64)
    starts = None if starts is None else np.array([seconds(s) for s in starts])
    return collect_measurements(store, ids, times, load_variables(names), window_hours=window_hours, starts=starts)


def triples(measurements, row):
    """(hours, variable, value) of each measurement of one row."""
    part = slice(measurements.offsets[row], measurements.offsets[row + 1])
    columns = (measurements.hours[part], measurements.variable[part], measurements.value[part])
    return list(zip(*(column.tolist() for column in columns), strict=True))


def listed(measurements, row):
    """The same, with names and rounded."""
    return [(round(h, 3), measurements.names[k], round(v, 2)) for h, k, v in triples(measurements, row)]


def no_statics(num_rows):
    return Statics(np.full((num_rows, 4), np.nan, np.float32), np.full(num_rows, -1), ())


def random_measurements(rng, num_rows=7, num_variables=3, window=5.0):
    """Rows of 0 to 11 measurements, some at the very ends of the window; one variable is never measured."""
    lengths = np.append(0, rng.integers(0, 12, num_rows - 1))
    hours = [np.sort(rng.choice([0.0, 0.5, 1.0, 2.0, 2.25, 4.75, window], n)) for n in lengths]
    offsets = np.append(0, np.cumsum(lengths))
    return Measurements(
        names=tuple(f"v{k}" for k in range(num_variables)),
        offsets=offsets,
        hours=np.concatenate(hours).astype(np.float32),
        variable=rng.integers(0, num_variables - 1, offsets[-1]).astype(np.int32),
        value=rng.normal(5, 3, offsets[-1]).astype(np.float32),
        window_hours=np.full(num_rows, window, np.float32),
        counts={},
    )


# Collecting


def test_no_rows_and_no_measurement(tmp_path):
    store = make_store(tmp_path, EVENTS)
    nothing = collect(store, [])
    assert nothing.offsets.tolist() == [0] and nothing.value.shape == (0,) and nothing.num_without == 0
    found = collect(store, [(2, "2020-01-01 04:00"), (1, "2020-01-01 00:29"), (1, "2019-01-01")])
    assert found.num_without == 3 and found.offsets.tolist() == [0, 0, 0, 0]
    scaler = Scaler.fit(collect(store, [(1, "2020-01-01 04:00")]), no_statics(1), np.array([0]))
    for measurements in (nothing, found):
        grid = to_grid(measurements, no_statics(len(measurements.window_hours)), scaler, num_bins=4)
        assert grid.values.shape == (len(measurements.window_hours), 4, 2) and not grid.values.any()
        assert not grid.observed.any() and not grid.has_vitals.any() and grid.time_mask.all()
        assert (grid.hours_since == np.array([1, 2, 3, 4])[:, None]).all()  # since the window's start


def test_measurements_of_rows(tmp_path):
    store = make_store(tmp_path, EVENTS)
    found = collect(store, [(1, "2020-01-01 04:00"), (3, "2020-01-01 02:00"), (1, "2020-01-01 03:00")])
    assert listed(found, 0) == [
        (0.5, "heart_rate", 80.0),
        (0.667, "heart_rate", 90.0),
        (2.167, "temperature", 37.0),
        (3.0, "heart_rate", 100.0),
    ]
    assert listed(found, 1) == [(3.0, "heart_rate", 60.0)]
    assert [value for *_, value in listed(found, 2)] == [80.0, 90.0, 37.0, 100.0]  # the last at the index time itself
    assert found.counts == {
        "heart_rate": {"measured": 4, "converted": 0, "cut": 0},
        "temperature": {"measured": 2, "converted": 1, "cut": 1},
    }


def test_windows_begin_with_the_stay_where_it_is_given(tmp_path):
    store = make_store(tmp_path, EVENTS)
    rows = [(1, "2020-01-01 03:00")] * 3
    assert len(collect(store, rows[:1], window_hours=0.5).value) == 1
    found = collect(store, rows, starts=["2019-12-31", "2020-01-01 00:40", "2020-01-01 03:00"])
    assert np.allclose(found.window_hours, [4, 7 / 3, 0])
    assert [listed(found, i)[0][::2] for i in range(3)] == [(1.5, 80.0), (0.0, 90.0), (0.0, 100.0)]


def test_bad_rows_are_named(tmp_path):
    store = make_store(tmp_path, EVENTS)
    with pytest.raises(ValueError, match="subject 9 is not in the store"):
        collect(store, [(1, "2020-01-01"), (9, "2020-01-01")])
    with pytest.raises(ValueError, match="subject 1: its stay starts after the index time"):
        collect(store, [(1, "2020-01-01")], starts=["2020-01-02"])
    with pytest.raises(ValueError, match="window_hours=0 must be above 0"):
        collect(store, [(1, "2020-01-01")], window_hours=0)


def test_nothing_after_the_index_time_is_used(tmp_path):
    index = [(1, "2020-01-01 03:00"), (3, "2020-01-01 01:00")]
    later = [(1, "2020-01-01 03:00:01", HR, 250.0, 10), (1, "2020-01-01 03:00:01", "ICU_ADMISSION//Other", None, 10)]
    later += [(3, "2020-01-01 01:00:01", "VITAL//LOINC//8302-2", 180.0, 30), (3, "2020-01-01 01:06", TEMP, 41.0, 30)]
    results = []
    for folder, events in (("a", EVENTS), ("b", EVENTS + later)):
        store = make_store(tmp_path / folder, events)
        ids, times = np.array([1, 3]), np.array([seconds(t) for _, t in index])
        measurements, statics = collect(store, index), collect_statics(store, ids, times)
        scaler = Scaler.fit(measurements, statics, np.array([0, 1]))
        results.append((measurements.counts, scaler, to_grid(measurements, statics, scaler, num_bins=4)))
    (counts, scaler, grid), (other_counts, other_scaler, other) = results
    assert counts == other_counts and scaler == other_scaler
    for field in dataclasses.fields(grid):
        assert np.array_equal(getattr(grid, field.name), getattr(other, field.name)), field.name


def test_shards_and_order_do_not_matter(tmp_path):
    rows = [(3, "2020-01-01 02:00"), (1, "2020-01-01 04:00"), (2, "2020-01-01 04:00"), (1, "2020-01-01 01:00")]
    one = collect(make_store(tmp_path / "one", EVENTS), rows)
    many = collect(make_store(tmp_path / "many", EVENTS, num_shards=3), rows)
    for name in ("offsets", "hours", "variable", "value", "window_hours", "counts"):
        assert np.array_equal(getattr(one, name), getattr(many, name)), name
    assert np.diff(one.offsets).tolist() == [1, 4, 0, 2]


# Statics


def test_statics_are_the_latest_by_the_index_time(tmp_path):
    store = make_store(tmp_path, EVENTS)
    times = np.array([seconds(f"2020-01-01 {clock}") for clock in ("04:59", "05:00", "04:00", "04:00")])
    statics = collect_statics(store, np.array([1, 1, 2, 3]), times)
    assert np.allclose(statics.values[:, 0], [70, 70, np.nan, np.nan], atol=0.01, equal_nan=True)
    assert np.array_equal(statics.values[:, 1], [1, 1, 0, np.nan], equal_nan=True)
    assert np.array_equal(statics.values[:, 2], [np.nan, 170, np.nan, np.nan], equal_nan=True)
    assert np.array_equal(statics.values[:, 3], [np.nan, np.nan, np.nan, 70], equal_nan=True)
    assert [statics.units[i] if i >= 0 else None for i in statics.unit] == [CARE, CARE, None, "ICU_ADMISSION//Coronary"]
    scaler = Scaler.fit(collect(store, [(1, "2020-01-01")] * 4), statics, np.array([0, 2]))
    assert scaler.static_names[-1:] == (CARE,)  # the coronary unit is in no train row
    encoded = scaler.encode_statics(statics)
    assert encoded.shape == (4, len(scaler.static_names)) and np.isfinite(encoded).all()
    assert encoded[:, -1].tolist() == [1, 1, 0, 0]
    missing = {name: encoded[:, i].tolist() for i, name in enumerate(scaler.static_names) if name.endswith("missing")}
    assert missing["height_missing"] == [1, 0, 1, 1] and missing["sex_missing"] == [0, 0, 0, 1]


# Scaling


def test_the_scaler_sees_the_train_rows_only():
    measurements = random_measurements(np.random.default_rng(0))
    is_train = np.arange(7) < 4
    row = np.repeat(np.arange(7), np.diff(measurements.offsets))
    changed = measurements._replace(value=np.where(is_train[row], measurements.value, 1e6).astype(np.float32))
    statics = no_statics(7)
    first = Scaler.fit(measurements, statics, is_train)
    assert (
        first == Scaler.fit(changed, statics, is_train) == Scaler.fit(measurements, statics, np.flatnonzero(is_train))
    )
    assert first != Scaler.fit(changed, statics, np.arange(7) < 5)
    values = measurements.value[is_train[row] & (measurements.variable == 0)]
    assert np.allclose([first.mean[0], 1 / first.inverse_std[0]], [values.mean(), values.std()])


def test_unseen_and_constant_variables():
    measurements = random_measurements(np.random.default_rng(0))
    constant = measurements._replace(value=np.where(measurements.variable == 0, 7.4, measurements.value))
    scaler = Scaler.fit(constant, no_statics(7), np.arange(7))
    scaled = scaler.scale(np.array([0, 0, 2, 1]), np.array([7.4, 8.4, 140.0, 1e9]))
    assert np.allclose(scaled, [0, 1, 0, 10], atol=1e-4)  # variable 2 is in no train row; one typing error is 10
    with pytest.raises(ValueError, match="none of the 7 rows is a train row"):
        Scaler.fit(measurements, no_statics(7), np.zeros(7, bool))


def test_a_saved_scaler_is_the_same(tmp_path):
    scaler = Scaler.fit(random_measurements(np.random.default_rng(0)), no_statics(7), np.arange(5))
    scaler.save(tmp_path / "scaler.json")
    assert Scaler.load(tmp_path / "scaler.json") == scaler
    for text in ("{", "[]", json.dumps({"mean": [1]})):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(ValueError, match=r"other\.json: is not a saved scaler"):
            Scaler.load(tmp_path / "other.json")


# The grid


def naive_grid(measurements, scaler, bin_hours, num_bins):
    """Values, observed and hours since, one cell at a time."""
    shape = (len(measurements.window_hours), num_bins, len(measurements.names))
    values, observed, since = np.zeros(shape), np.zeros(shape, bool), np.zeros(shape)
    for n, window in enumerate(measurements.window_hours.tolist()):
        ends = [min((t + 1) * bin_hours, window) for t in range(num_bins) if t == 0 or t * bin_hours < window]
        for k in range(shape[2]):
            known, last = 0.0, 0.0
            for t, end in enumerate(ends):
                found = [
                    (h, v)
                    for h, j, v in triples(measurements, n)
                    if j == k and t * bin_hours <= h and (h < (t + 1) * bin_hours or t == len(ends) - 1)
                ]
                if found:
                    known = np.mean(scaler.scale(np.full(len(found), k), np.array([v for _, v in found])))
                    last = max(h for h, _ in found)
                values[n, t, k], observed[n, t, k], since[n, t, k] = known, bool(found), end - last
    return values, observed, since


@pytest.mark.parametrize(("bin_hours", "num_bins"), [(1.0, 5), (0.5, 10), (2.0, 3), (1.0, 8), (5.0, 1)])
def test_the_grid_is_what_a_loop_makes(bin_hours, num_bins, monkeypatch):
    monkeypatch.setattr("ehrjax.data.vitals._CHUNK_CELLS", 3 * 3 * num_bins)  # several chunks
    measurements = random_measurements(np.random.default_rng(1))
    scaler = Scaler.fit(measurements, no_statics(7), np.arange(7))
    grid = to_grid(measurements, no_statics(7), scaler, bin_hours=bin_hours, num_bins=num_bins)
    values, observed, since = naive_grid(measurements, scaler, bin_hours, num_bins)
    assert np.array_equal(grid.observed, observed)
    assert np.allclose(grid.values, values, atol=1e-5) and np.allclose(grid.hours_since, since, atol=1e-5)
    assert np.array_equal(grid.time_mask[0], np.arange(num_bins) * bin_hours < 5)
    assert grid.values.dtype == grid.hours_since.dtype == grid.statics.dtype == np.float32
    assert grid.has_vitals.tolist() == (np.diff(measurements.offsets) > 0).tolist()


def test_a_measurement_at_the_index_time_counts(tmp_path):
    store = make_store(tmp_path, EVENTS)
    found = collect(store, [(1, "2020-01-01 03:00"), (1, "2020-01-01 00:30")], starts=["2020-01-01 00:00"] * 2)
    grid = to_grid(found, no_statics(2), Scaler.fit(found, no_statics(2), np.arange(2)), num_bins=4)
    assert grid.time_mask.tolist() == [[True] * 3 + [False], [True] + [False] * 3]
    assert grid.observed[:, :, 0].tolist() == [[True, False, True, False], [True, False, False, False]]
    assert np.allclose(grid.hours_since[:, :, 0], [[1 / 3, 4 / 3, 0, 0], [0, 0, 0, 0]], atol=1e-6)


def test_grids_that_do_not_fit():
    measurements = random_measurements(np.random.default_rng(0))
    scaler = Scaler.fit(measurements, no_statics(7), np.arange(7))
    with pytest.raises(ValueError, match="4 bins of 1 h do not hold a window of 5 h: take at least 5"):
        to_grid(measurements, no_statics(7), scaler, num_bins=4)
    with pytest.raises(ValueError, match="bin_hours=-1 must be above 0"):
        to_grid(measurements, no_statics(7), scaler, bin_hours=-1)
    with pytest.raises(ValueError, match="6 rows of statics for 7"):
        to_grid(measurements, no_statics(6), scaler)
    with pytest.raises(ValueError, match="the scaler was fitted on"):
        to_grid(measurements._replace(names=("a", "b", "c")), no_statics(7), scaler)


def test_default_variables_are_the_six_vitals(tmp_path):
    found = collect(make_store(tmp_path, EVENTS), [(1, "2020-01-01 04:00")], names=VITALS)
    assert found.names == VITALS and found.counts["systolic_pressure"]["measured"] == 0  # an event without a value


def test_vitals_of_a_real_omop_extract(tmp_path, shared_data):
    extract = shared_data / "omop" / "Synthea27Nj_5.4.zip"
    if not extract.is_file():
        pytest.skip("the OMOP extract is not among the real data sets")
    store = build_store("omop", extract, tmp_path / "store")
    ids, variables = store.subject_ids, load_variables(VITALS)
    times = np.full(len(ids), store.manifest["last_time"])
    found = collect_measurements(store, ids, times, variables, window_hours=24 * 365 * 100)
    assert all(counts["measured"] > 0 and counts["cut"] == 0 for counts in found.counts.values())
    statics = collect_statics(store, ids, times)
    assert not np.isnan(statics.values).any()
    grid = to_grid(found, statics, Scaler.fit(found, statics, ids % 2 == 0), bin_hours=24 * 365, num_bins=100)
    assert np.isfinite(grid.values).all() and grid.has_vitals.any()
