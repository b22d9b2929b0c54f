import datetime as dt

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrjax.data.events import STATIC_TIME
from ehrjax.data.readers import columns as columns_lib


def micro(text: str) -> int:
    return int(np.datetime64(text, "us").astype(np.int64))


def column(values: list) -> columns_lib.Column:
    return columns_lib.encode_column(pa.array(values))


@pytest.mark.parametrize("values", [[], [""], [None, ""]])
def test_nothing_parses_to_nothing(values):
    array = pa.array(values, pa.string())
    times, bad = columns_lib.parse_times(array)
    ints, bad_ints = columns_lib.parse_ints(array)
    assert times.tolist() == [STATIC_TIME] * len(values) and not bad.any()
    assert ints.tolist() == [-1] * len(values) and not bad_ints.any()
    assert np.isnan(columns_lib.parse_numbers(array)).all()
    assert not columns_lib.has_value(array).any()
    assert columns_lib.hash_values(array).tolist() == [-1] * len(values)


def test_take_of_an_absent_column_is_the_fill():
    absent = columns_lib.empty_column(3)
    assert absent.take(columns_lib.parse_numbers(absent.values), np.nan).shape == (3,)
    assert absent.take(columns_lib.parse_times(absent.values)[0], STATIC_TIME).tolist() == [STATIC_TIME] * 3
    assert not absent.filled().any()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2019-12-31", "2019-12-31"),
        ("2019-12-31T08:30:00Z", "2019-12-31T08:30:00"),
        ("2019-12-31 08:30:00", "2019-12-31T08:30:00"),
        ("2019-12-31 08:30", "2019-12-31T08:30:00"),
        ("2019-12-31T08:30:00.5", "2019-12-31T08:30:00.5"),
        ("2019-12-31T08:30:00+01:30", "2019-12-31T07:00:00"),
        ("2019-12-31T08:30:00-0500", "2019-12-31T13:30:00"),
        ("2019-12-31 08:30:00.123456789 UTC", "2019-12-31T08:30:00.123456"),
        ("2000-02-29", "2000-02-29"),
        ("2188-01-01 00:00:00", "2188-01-01"),
        ("0001-01-01", "0001-01-01"),
    ],
)
@pytest.mark.parametrize("company", [[], ["31/12/2019", "2019-12-31", "2019-12-31T08:30:00Z"]])
def test_times_read_the_same_alone_and_in_mixed_company(text, expected, company):
    times, bad = columns_lib.parse_times(pa.array([*company, text]))
    assert times[-1] == micro(expected)
    assert bad.tolist() == [value == "31/12/2019" for value in company] + [False]


@pytest.mark.parametrize(
    "text",
    ["31/12/2019", "12/31/2019", "20191231", "2019-02-30", "1900-02-29", "2019-13-01", "2019-12-31T24:00:00", "x"],
)
def test_no_time_is_guessed(text):
    times, bad = columns_lib.parse_times(pa.array(["2019-12-31", text]))
    assert bad.tolist() == [False, True]
    assert times[1] == STATIC_TIME


@settings(deadline=None)
@given(st.lists(st.datetimes(min_value=dt.datetime(1, 1, 2)), min_size=1, max_size=5), st.integers(-1439, 1439))
def test_mixed_times_agree_with_the_standard_library(stamps, minutes):
    zone = dt.timezone(dt.timedelta(minutes=minutes))
    texts = ["bad", *(stamp.isoformat() for stamp in stamps), stamps[0].replace(tzinfo=zone).isoformat(sep=" ")]
    times, bad = columns_lib.parse_times(pa.array(texts))
    expected = [stamp - dt.datetime(1970, 1, 1) for stamp in stamps]
    expected.append(expected[0] - dt.timedelta(minutes=minutes))
    assert times[1:].tolist() == [delta // dt.timedelta(microseconds=1) for delta in expected]
    assert bad.tolist() == [True] + [False] * (len(texts) - 1)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array([18000, None], pa.date32()), [18000 * 86_400_000_000, STATIC_TIME]),
        (pa.array([1_999], pa.timestamp("ns")), [1]),
        (pa.array([1], pa.timestamp("s", "Europe/Paris")), [1_000_000]),
    ],
)
def test_times_of_typed_columns(array, expected):
    times, bad = columns_lib.parse_times(array)
    assert times.tolist() == expected and not bad.any()


def test_date_only():
    assert columns_lib.is_date_only(pa.array(["2019-12-31", "2019-12-31T00:00:00Z"])).tolist() == [True, False]
    assert columns_lib.is_date_only(pa.array([1], pa.date32())).tolist() == [True]
    assert columns_lib.is_date_only(pa.array([1], pa.timestamp("us"))).tolist() == [False]


def test_numbers():
    texts = ["1e-5", "2020-01-01", "<5", "nan", "inf", "+5", "5.", ".5", "1e999", "-", "5,3", "0x10", "1_000", "1e39"]
    numbers = columns_lib.parse_numbers(pa.array(texts))
    assert dict(zip(texts, numbers.tolist(), strict=True)) == pytest.approx(
        dict.fromkeys(texts, np.nan) | {"1e-5": 1e-5, "+5": 5, "5.": 5, ".5": 0.5}, nan_ok=True
    )
    assert columns_lib.parse_numbers(pa.array(["1e-5", "-3"])).tolist() == pytest.approx([1e-5, -3])
    assert columns_lib.parse_numbers(pa.array([1, None])).tolist() == pytest.approx([1, np.nan], nan_ok=True)


def test_ints():
    ints, bad = columns_lib.parse_ints(pa.array(["7", "12.0", "x", "1.5", ""]))
    assert ints.tolist() == [7, 12, -1, -1, -1]
    assert bad.tolist() == [False, False, True, True, False]
    assert columns_lib.parse_ints(pa.array([2.0, 2.5, None]))[0].tolist() == [2, -1, -1]
    assert columns_lib.parse_ints(pa.array([2**62]))[0].tolist() == [2**62]


def test_texts_lose_what_spreadsheets_add():
    values = column([" 44054006.0", "44054006", "8302-2", "1.5", "v1.0"]).values
    assert columns_lib.to_texts(values) == ["44054006", "44054006", "8302-2", "1.5", "v1.0"]
    assert columns_lib.to_texts(pa.array([44054006, None])) == ["44054006", ""]


def test_hash_ids_are_stable():
    ids = columns_lib.hash_ids(["92b02539-377f-4a45-b180-99974a9ed149", "b"])
    assert ids.tolist() == [666153528433259486, 6344029791039557487]
    assert columns_lib.hash_ids(pa.array(["b"])).tolist() == ids[1:].tolist()
    assert len(columns_lib.hash_ids([])) == 0


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(-1, 2)), max_size=20))
def test_combine_names_every_row_by_its_tuple(rows):
    first, second = np.array(rows, np.int32).reshape(-1, 2).T
    index, tuples = columns_lib.combine([(first, list("abcd")), (second, list("xyz"))])
    assert len(set(tuples)) == len(tuples)
    assert [tuples[i] for i in index] == [("abcd"[a] if a >= 0 else "", "xyz"[b] if b >= 0 else "") for a, b in rows]


def test_combine_of_wide_columns_needs_no_table():
    texts = [str(i) for i in range(100_000)]
    index, tuples = columns_lib.combine([(np.array([99_999, 5, 99_999]), texts), (np.array([1, 2, 1]), texts)])
    assert [tuples[i] for i in index] == [("99999", "1"), ("5", "2"), ("99999", "1")]


def test_distinct_merges_equal_texts():
    index, texts = columns_lib.distinct(np.array([0, 1, 2, -1]), ["a", "b", "a"])
    assert texts == ["a", "b"] and index.tolist() == [0, 1, 0, -1]
