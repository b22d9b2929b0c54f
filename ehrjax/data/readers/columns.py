"""Columns of one block of a table, dictionary-encoded: every conversion touches the distinct values, never the rows.

A CSV column arrives as distinct trimmed strings and an index a row; a parquet column keeps its own type. Unreadable
values are flagged, not guessed: "31/12/2019" is no time, "<5" is no number, "1e-5" is one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ehrjax.data.events import STATIC_TIME

TIME_FORMAT = "ISO 8601: 2019-12-31, 2019-12-31T08:30:00Z, 2019-12-31 08:30:00 or with an offset (+01:00)"
_ISO = (
    r"^(?P<year>\d{4})-(?P<month>\d{2})-(?P<day>\d{2})"
    r"(?:[T ](?P<hour>\d{2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d{1,9}))?)?"
    r" ?(?:Z|z|UTC|(?P<sign>[+-])(?P<zone_hours>\d{2}):?(?P<zone_minutes>\d{2})?)?)?$"
)
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"


class Column(NamedTuple):
    """One column of a block: row i holds `values[index[i]]`, or nothing where `index[i]` is -1."""

    index: np.ndarray  # int32 [n]
    values: pa.Array  # distinct; strings are trimmed UTF-8

    def take(self, converted: np.ndarray, fill) -> np.ndarray:
        """What `converted` (one entry a distinct value) says of each row; `fill` where the row has no value."""
        padded = np.append(converted, np.asarray(fill, converted.dtype))  # index -1 meets the fill
        return padded[self.index]

    def filled(self) -> np.ndarray:
        """Mask (bool [n]) of rows that hold a value; an empty string is none."""
        return self.take(has_value(self.values), False)


def empty_column(num_rows: int) -> Column:
    """A column without any value: what an optional column that the file lacks reads as."""
    return Column(np.full(num_rows, -1, np.int32), pa.array([], pa.string()))


def encode_column(array: pa.Array) -> Column:
    """Dictionary-encode an Arrow array of any type and trim its strings."""
    if not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    index = _fill(pc.cast(array.indices, pa.int32()), -1)
    values = array.dictionary
    return Column(index, pc.utf8_trim_whitespace(values) if is_string(values) else values)


def hash_ids(strings: Sequence[str] | np.ndarray | pa.Array) -> np.ndarray:
    """Stable ids (int64 >= 0) of source identifiers: 63 bits of pandas' SipHash, equal on every machine and run.

    >>> hash_ids(["a", "b"]).tolist() == hash_ids(["b", "a"]).tolist()[::-1]
    True
    """
    if isinstance(strings, pa.Array):
        strings = strings.to_numpy(zero_copy_only=False)
    objects = np.asarray(strings, dtype=object)
    if not len(objects):
        return np.zeros(0, np.int64)
    return (pd.util.hash_array(objects, categorize=False) >> np.uint64(1)).astype(np.int64)


def hash_values(values: pa.Array) -> np.ndarray:
    """`hash_ids` of each distinct value (int64 [k]), -1 where there is none."""
    texts = values if is_string(values) else pc.cast(values, pa.string())
    texts = pc.fill_null(texts, "") if texts.null_count else texts
    return np.where(has_value(texts), hash_ids(texts), -1)


def parse_times(values: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Microseconds since 1970 in UTC (int64, STATIC_TIME where none) and a mask of values that are no ISO 8601 time.

    A time without a zone counts as UTC, a date as its midnight. One cast reads a column in which all values have the
    same form; only a column where that fails is taken apart.
    """
    values = _null_if_empty(values)
    try:
        if is_string(values):
            zoned = _looks_zoned(values)
            stamps = pc.cast(values, pa.timestamp("us", "UTC" if zoned else None))
        else:
            stamps = pc.cast(values, pa.timestamp("us", getattr(values.type, "tz", None)), safe=False)
    except pa.ArrowInvalid:
        return _parse_mixed_times(values)
    return _to_int64(stamps), np.zeros(len(values), bool)


def parse_numbers(values: pa.Array) -> np.ndarray:
    """float32 of each value; NaN where it is not a finite number ("1e-5" is one, "2020-01-01", "<5" and "nan" not)."""
    values = _null_if_empty(values)
    try:
        numbers = pc.cast(values, pa.float64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        text = pc.cast(values, pa.string())
        numbers = pc.cast(pc.if_else(pc.match_substring_regex(text, _NUMBER), text, None), pa.float64())
    wide = numbers.to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = wide.astype(np.float32)
    narrow[~np.isfinite(narrow)] = np.nan
    return narrow


def parse_ints(values: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """int64 of each value (-1 where none) and a mask of values that are no whole number; "12.0" is 12."""
    values = _null_if_empty(values)
    try:
        whole = pc.cast(values, pa.int64())
        bad = np.zeros(len(values), bool)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        text = pc.replace_substring_regex(pc.cast(values, pa.string()), r"\.0*$", "")
        is_whole = pc.match_substring_regex(text, r"^-?\d{1,18}$")
        whole = pc.cast(pc.if_else(is_whole, text, None), pa.int64())
        bad = pc.and_(pc.is_valid(values), pc.is_null(whole)).to_numpy(zero_copy_only=False)
    return _fill(whole, -1), bad


def is_date_only(values: pa.Array) -> np.ndarray:
    """Mask of time values that name a day without a time of day."""
    if pa.types.is_date(values.type):
        return np.ones(len(values), bool)
    if not is_string(values):
        return np.zeros(len(values), bool)
    return pc.less_equal(pc.binary_length(values), 10).to_numpy(zero_copy_only=False)


def to_texts(values: pa.Array) -> list[str]:
    """Distinct values as text, "" where none; whole numbers stored as floats lose their ".0", as codes need."""
    if not is_string(values):
        values = pc.cast(values, pa.string())
    texts = ["" if v is None else v for v in values.to_pylist()]
    return [_without_point_zero(text) for text in texts]


def combine(columns: Sequence[tuple[np.ndarray, Sequence[str]]]) -> tuple[np.ndarray, list[tuple[str, ...]]]:
    """Distinct tuples over several (index, texts) columns and each row's tuple (int32 [n]); index -1 reads as "".

    >>> combine([(np.array([0, 0, 1]), ["a", "b"]), (np.array([0, -1, 0]), ["x"])])
    (array([1, 0, 2], dtype=int32), [('a', ''), ('a', 'x'), ('b', 'x')])
    """
    index, tuples = np.zeros(len(columns[0][0]), np.int64), [()]
    for other, texts in columns:
        width = len(texts) + 1
        index, present = _compact(index * width + other + 1, len(tuples) * width)
        padded = ["", *texts]
        tuples = [(*tuples[key // width], padded[key % width]) for key in present.tolist()]
    return index.astype(np.int32), tuples


def distinct(index: np.ndarray, texts: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """The same column with each text once: `texts` may repeat, `index` (-1 = none) follows."""
    position = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    remap = np.array([position[text] for text in texts] + [-1], np.int32)
    return remap[index], list(position)


def _compact(keys: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Each key's rank among the distinct keys, and those; a table serves small ranges, a hash the others."""
    if limit <= 4 * len(keys) + 65536:
        present = np.flatnonzero(np.bincount(keys, minlength=1))
        rank = np.zeros(limit, np.int64)
        rank[present] = np.arange(len(present))
        return rank[keys], present
    return pd.factorize(keys)


def _without_point_zero(text: str) -> str:
    head, dot, tail = text.partition(".")
    return head if dot and head.isdigit() and not tail.strip("0") else text


def is_string(values: pa.Array) -> bool:
    """Whether values are text, as all of a CSV's are."""
    return pa.types.is_string(values.type) or pa.types.is_large_string(values.type)


def has_value(values: pa.Array) -> np.ndarray:
    """Mask of values that are neither null nor an empty string."""
    if not is_string(values):
        return pc.is_valid(values).to_numpy(zero_copy_only=False)
    filled = pc.not_equal(values, "")
    return (pc.fill_null(filled, False) if filled.null_count else filled).to_numpy(zero_copy_only=False)


def _null_if_empty(values: pa.Array) -> pa.Array:
    if not is_string(values):
        return values
    is_empty = pc.equal(values, "")
    return pc.if_else(is_empty, pa.scalar(None, values.type), values) if pc.any(is_empty).as_py() else values


def _looks_zoned(values: pa.Array) -> bool:
    first = next((v.as_py() for v in values[:2] if v.is_valid), "")  # an empty value is distinct, hence among two
    return len(first) > 10 and (first[-1] in "Zz" or "+" in first[10:] or "-" in first[10:])


def _to_int64(stamps: pa.Array) -> np.ndarray:
    return _fill(stamps.view(pa.int64()), STATIC_TIME)


def _fill(array: pa.Array, fill: int) -> np.ndarray:
    return (pc.fill_null(array, fill) if array.null_count else array).to_numpy(zero_copy_only=False)


def _parse_mixed_times(values: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Times of a column whose values differ in form, from the parts that a regular expression finds."""
    parts = pc.extract_regex(pc.cast(values, pa.string()), _ISO)
    is_iso = pc.is_valid(parts).to_numpy(zero_copy_only=False)

    def number(name: str, width: int = 0) -> np.ndarray:
        digits = pc.struct_field(parts, name)
        digits = pc.utf8_slice_codeunits(pc.utf8_rpad(digits, width, "0"), 0, width) if width else digits
        digits = pc.if_else(pc.equal(digits, ""), "0", digits)
        return pc.fill_null(pc.cast(digits, pa.int64()), 0).to_numpy(zero_copy_only=False)

    month, day, hour, minute, second = (number(name) for name in ("month", "day", "hour", "minute", "second"))
    month_start = ((number("year") - 1970) * 12 + month - 1).astype("datetime64[M]")
    month_days = ((month_start + 1).astype("datetime64[D]") - month_start.astype("datetime64[D]")).astype(np.int64)
    is_iso &= (month >= 1) & (month <= 12) & (day >= 1) & (day <= month_days)
    is_iso &= (hour < 24) & (minute < 60) & (second < 60)
    is_west = pc.fill_null(pc.equal(pc.struct_field(parts, "sign"), "-"), False).to_numpy(zero_copy_only=False)
    offset_minutes = (number("zone_hours") * 60 + number("zone_minutes")) * np.where(is_west, -1, 1)
    days = month_start.astype("datetime64[D]").astype(np.int64) + day - 1
    seconds = ((days * 24 + hour) * 60 + minute - offset_minutes) * 60 + second
    micro = np.where(is_iso, seconds * 1_000_000 + number("fraction", 6), STATIC_TIME)
    return micro, ~is_iso & pc.is_valid(values).to_numpy(zero_copy_only=False)
