"""Vital signs and laboratory values before index times: irregular, then on a regular grid.

`collect_measurements` reads them from a store for index rows (subject, time): measurements with start <= time <= index
time and no others, in CSR form. `Scaler.fit` sees the train rows only. `to_grid` bins: the mean of a bin's values (a
single artefact weighs less than in the last value), then the last known bin, then the train mean, which is 0 when
scaled; beside it what was observed, and for how long nothing was.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from ehrjax.data.outcomes import has_static
from ehrjax.data.shards import NULL_TIME
from ehrjax.data.timeline import YEAR, SortedTimes, expand
from ehrjax.data.variables import Variable, check_values, load_variables, map_codes

HOUR = 3600
STATIC_NAMES = ("age", "sex", "height", "weight")
_UNIT_PREFIX = "ICU_ADMISSION//"
_MAX_SCALED = 10.0  # standard deviations: a typing error within the plausible range must not drown the rest
_CHUNK_CELLS = 1 << 22  # of the grid, which bounds the float64 arrays beside it


class Measurements(NamedTuple):
    """M measurements of N index rows; row i owns `offsets[i]:offsets[i + 1]`, in the order of time.

    `counts`: variable -> how many "measured", "converted" (from another unit) and "cut" (implausible) values the
    subjects of the rows have by their last index time, each counted once, whatever the windows.
    """

    names: tuple[str, ...]  # of the K variables
    offsets: Int[np.ndarray, "N+1"]
    hours: Float[np.ndarray, "M"]  # after the window's start
    variable: Int[np.ndarray, "M"]
    value: Float[np.ndarray, "M"]  # in the variable's unit
    window_hours: Float[np.ndarray, "N"]  # from the window's start to the index time
    counts: dict[str, dict[str, int]]

    @property
    def num_without(self) -> int:
        """Rows without any measurement."""
        return int((np.diff(self.offsets) == 0).sum())


class Statics(NamedTuple):
    """What is known of the patient by each of N index times; NaN, or unit -1, where nothing is."""

    values: Float[np.ndarray, "N 4"]  # STATIC_NAMES: years, 1 = male and 0 = female, cm, kg
    unit: Int[np.ndarray, "N"]  # of `units`: where the latest intensive care began
    units: tuple[str, ...]


@dataclass(frozen=True)
class VitalsGrid:
    """K variables of N index rows in T bins from the window's start. Where `time_mask` is False all channels are 0."""

    values: Float[np.ndarray, "N T K"]  # scaled, filled forward, then 0 = the train mean
    observed: Bool[np.ndarray, "N T K"]  # measured in that bin
    hours_since: Float[np.ndarray, "N T K"]  # from the last measurement, or the window's start, to the bin's end
    time_mask: Bool[np.ndarray, "N T"]  # the bin begins before the index time; its end is cut there
    statics: Float[np.ndarray, "N S"]  # see `Scaler.static_names`
    has_vitals: Bool[np.ndarray, "N"]


# Collecting


def collect_measurements(
    store,
    subject_ids: Int[np.ndarray, "N"],
    times: Int[np.ndarray, "N"],
    variables: Sequence[Variable],
    *,
    window_hours: float,
    starts: Int[np.ndarray, "N"] | None = None,
) -> Measurements:
    """Measurements of the last `window_hours` before each index time, and none before `starts` (of the stay).

    `times` and `starts` are seconds since 1970. Values are converted to their variable's unit, implausible ones cut.
    Raises ValueError naming the first subject that is not in the store, or whose start is after the index time.
    """
    subject_ids, times = np.asarray(subject_ids, np.int64), np.asarray(times, np.int64)
    begin = times - round(_positive("window_hours", window_hours) * HOUR)
    begin = begin if starts is None else np.maximum(begin, np.asarray(starts, np.int64))
    if (late := np.flatnonzero(begin > times)).size:
        raise ValueError(f"subject {subject_ids[late[0]]}: its stay starts after the index time {times[late[0]]}.")
    codes = map_codes(variables, store.codes)
    counts = np.zeros((3, len(variables)), np.int64)
    parts = []
    for shard, rows, patients in _by_shard(store, subject_ids):
        events = _read_events(shard, codes.variable >= 0, patients, times[rows])
        events = events.take(~np.isnan(events.value))
        index = codes.variable[events.code]
        checked = check_values(variables, index, events.value * codes.factor[events.code])
        counts += (np.bincount(index, minlength=len(variables)), checked.num_converted, checked.num_cut)
        events = events._replace(code=index, value=checked.values).take(checked.is_plausible)
        parts.append((rows, *_in_windows(events, patients, begin[rows], times[rows])))
    offsets, (seconds, variable, value) = _join(parts, len(times))
    hours = (seconds - np.repeat(begin, np.diff(offsets))) / HOUR
    names = tuple(variable.name for variable in variables)
    return Measurements(
        names=names,
        offsets=offsets,
        hours=hours.astype(np.float32),
        variable=variable.astype(np.int32),
        value=value.astype(np.float32),
        window_hours=((times - begin) / HOUR).astype(np.float32),
        counts={
            name: dict(zip(("measured", "converted", "cut"), column, strict=True))
            for name, column in zip(names, counts.T.tolist(), strict=True)
        },
    )


def collect_statics(
    store, subject_ids: Int[np.ndarray, "N"], times: Int[np.ndarray, "N"], *, path: str | Path | None = None
) -> Statics:
    """Age at the index time, sex, and the latest height, weight and intensive care unit by then.

    `path` is the mapping file of `load_variables`. Raises ValueError naming a subject that is not in the store.
    """
    subject_ids, times = np.asarray(subject_ids, np.int64), np.asarray(times, np.int64)
    body = load_variables(STATIC_NAMES[2:], path)
    codes = map_codes(body, store.codes)
    units = tuple(str(code) for code in store.codes if str(code).startswith(_UNIT_PREFIX))
    unit_of = np.array([units.index(code) if code in units else -1 for code in map(str, store.codes)], np.int64)
    values, unit = np.full((len(times), 4), np.nan, np.float32), np.full(len(times), -1, np.int32)
    sexes = np.array([_sex(str(code)) for code in store.codes])
    for shard, rows, patients in _by_shard(store, subject_ids):
        birth = np.asarray(shard.birth)[patients]
        values[rows, 0] = np.where(birth == NULL_TIME, np.nan, (times[rows] - birth) / YEAR)
        for sex in (0.0, 1.0):
            values[rows, 1] = np.where(has_static(shard, sexes == sex)[patients], sex, values[rows, 1])
        events = _read_events(shard, codes.variable >= 0, patients, times[rows])
        checked = check_values(body, codes.variable[events.code], events.value * codes.factor[events.code])
        events = events._replace(code=codes.variable[events.code], value=checked.values).take(checked.is_plausible)
        for k in range(len(body)):
            values[rows, 2 + k] = _latest(events.take(events.code == k), patients, times[rows]).value
        events = _read_events(shard, unit_of >= 0, patients, times[rows])
        unit[rows] = np.append(unit_of, -1)[_latest(events, patients, times[rows]).code]
    return Statics(values, unit, units)


def _sex(code: str) -> float:
    return {"GENDER//M": 1.0, "GENDER//MALE": 1.0, "GENDER//F": 0.0, "GENDER//FEMALE": 0.0}.get(code.upper(), np.nan)


class _Events(NamedTuple):
    """Events of one shard in the order of (patient, time)."""

    patient: np.ndarray
    seconds: np.ndarray
    code: np.ndarray
    value: np.ndarray

    def take(self, keep: np.ndarray) -> "_Events":
        return _Events(*(column[keep] for column in self))


def _by_shard(store, subject_ids: np.ndarray) -> Iterator[tuple[object, np.ndarray, np.ndarray]]:
    """Each shard with the index rows whose subject it holds, and these subjects' places in it."""
    found = np.zeros(len(subject_ids), bool)
    for shard in store.shards:
        rows = np.flatnonzero(np.isin(subject_ids, shard.subject_ids))
        found[rows] = True
        if len(rows):
            yield shard, rows, np.searchsorted(shard.subject_ids, subject_ids[rows])
    if not found.all():
        raise ValueError(f"subject {subject_ids[~found][0]} is not in the store: take its index rows out.")


def _read_events(shard, is_code: np.ndarray, patients: np.ndarray, times: np.ndarray) -> _Events:
    """Events of these codes and patients up to each patient's last index time."""
    last = np.full(len(shard.subject_ids), np.iinfo(np.int64).min)
    np.maximum.at(last, patients, times)
    visit_rows = np.repeat(np.arange(len(last)), np.diff(shard.visit_offsets))
    found = np.flatnonzero(is_code[shard.event_codes])
    visits = np.searchsorted(shard.event_offsets, found, side="right") - 1
    seconds = np.asarray(shard.visit_start)[visits] + np.asarray(shard.event_times)[found]
    known = seconds <= last[visit_rows[visits]]
    found, patient, seconds = found[known], visit_rows[visits[known]], seconds[known]
    order = np.lexsort((seconds, patient))
    found = found[order]
    return _Events(patient[order], seconds[order], np.asarray(shard.event_codes)[found], shard.event_values[found])


def _in_windows(events: _Events, patients, begin, times) -> tuple[np.ndarray, list[np.ndarray]]:
    """How many events each row has, and these events' columns one row after another."""
    sorted_times = SortedTimes(events.patient, events.seconds)
    first = np.searchsorted(events.patient, patients) + sorted_times.count_until(patients, begin - 1)
    lengths = np.searchsorted(events.patient, patients) + sorted_times.count_until(patients, times) - first
    chosen, _ = expand(first, lengths)
    return lengths, [events.seconds[chosen], events.code[chosen], events.value[chosen]]


def _latest(events: _Events, patients: np.ndarray, times: np.ndarray) -> _Events:
    """Each row's last event by its time; code -1 and value NaN where there is none."""
    num_known = SortedTimes(events.patient, events.seconds).count_until(patients, times)
    at = np.where(num_known > 0, np.searchsorted(events.patient, patients) + num_known - 1, -1)
    fills = (-1, NULL_TIME, -1, np.nan)
    return _Events(*(np.append(column, fill)[at] for column, fill in zip(events, fills, strict=True)))


def _join(parts: list, num_rows: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Offsets and columns in the order of the rows, from those of each shard's rows."""
    lengths = np.zeros(num_rows, np.int64)
    for rows, each, _ in parts:
        lengths[rows] = each
    offsets = np.append(0, np.cumsum(lengths))
    columns = [np.zeros(offsets[-1], kind) for kind in (np.int64, np.int64, np.float32)]
    for rows, each, values in parts:
        place, _ = expand(offsets[rows], each)
        for column, value in zip(columns, values, strict=True):
            column[place] = value
    return offsets, columns


# Scaling


@dataclass(frozen=True)
class Scaler:
    """Means and standard deviations of the train rows. A variable that no train row has scales to 0 everywhere."""

    names: tuple[str, ...]
    mean: tuple[float, ...]
    inverse_std: tuple[float, ...]  # 0 where unseen, 1 where constant
    static_mean: tuple[float, ...]
    static_inverse_std: tuple[float, ...]
    units: tuple[str, ...]  # of the train rows

    @classmethod
    def fit(cls, measurements: Measurements, statics: Statics, train_rows: np.ndarray) -> "Scaler":
        """From the rows chosen by an index or mask. Raises ValueError where these are none."""
        num_rows = len(measurements.window_hours)
        is_train = np.zeros(num_rows, bool)
        is_train[train_rows] = True
        if not is_train.any():
            raise ValueError(f"none of the {num_rows} rows is a train row: there is nothing to fit the scaler on.")
        seen = np.repeat(is_train, np.diff(measurements.offsets))
        moments = _moments(measurements.variable[seen], measurements.value[seen], len(measurements.names))
        table = statics.values[is_train]
        row, column = np.nonzero(~np.isnan(table))
        static_moments = _moments(column, table[row, column], table.shape[1])
        units = sorted({statics.units[i] for i in np.unique(statics.unit[is_train]) if i >= 0})
        return cls(measurements.names, *moments, *static_moments, tuple(units))

    @property
    def static_names(self) -> tuple[str, ...]:
        """Names of the S columns of `VitalsGrid.statics`."""
        return (*STATIC_NAMES, *(f"{name}_missing" for name in STATIC_NAMES), *self.units)

    def scale(self, variable: Int[np.ndarray, "M"], value: Float[np.ndarray, "M"]) -> Float[np.ndarray, "M"]:
        """Values in standard deviations from the train mean, at most 10."""
        scaled = (value - np.array(self.mean)[variable]) * np.array(self.inverse_std)[variable]
        return np.clip(scaled, -_MAX_SCALED, _MAX_SCALED).astype(np.float32)

    def encode_statics(self, statics: Statics) -> Float[np.ndarray, "N S"]:
        """Scaled values (0 where missing), flags of what is missing, and one column a unit that train rows have."""
        scaled = (statics.values - np.array(self.static_mean)) * np.array(self.static_inverse_std)
        missing = np.isnan(statics.values)
        place = {name: i for i, name in enumerate(self.units)}
        column = np.array([*(place.get(name, -1) for name in statics.units), -1])[statics.unit]
        one_hot = column[:, None] == np.arange(len(self.units))
        columns = [np.clip(np.where(missing, 0, scaled), -_MAX_SCALED, _MAX_SCALED), missing, one_hot]
        return np.concatenate(columns, axis=1).astype(np.float32)

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Scaler":
        """Read what `save` wrote. Raises FileNotFoundError, or ValueError naming the file."""
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(**{name: tuple(values) for name, values in fields.items()})
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: is not a saved scaler ({error}): fit it again.") from error


def _moments(group: np.ndarray, value: np.ndarray, num_groups: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and inverse standard deviation of each group; (0, 0) of an empty one, inverse 1 of a constant one."""
    count = np.bincount(group, minlength=num_groups)
    mean = np.bincount(group, value, num_groups) / np.maximum(count, 1)
    variance = np.bincount(group, (value - mean[group]) ** 2, num_groups) / np.maximum(count, 1)
    is_constant = variance <= (1e-6 * np.maximum(np.abs(mean), 1e-6)) ** 2
    inverse = np.where(count == 0, 0.0, np.where(is_constant, 1.0, 1 / np.sqrt(np.where(is_constant, 1, variance))))
    return tuple(mean.tolist()), tuple(inverse.tolist())


# The grid


def to_grid(
    measurements: Measurements, statics: Statics, scaler: Scaler, *, bin_hours: float = 1.0, num_bins: int = 48
) -> VitalsGrid:
    """Bins of `bin_hours` from each window's start; a measurement at the index time itself is in its last bin.

    Raises ValueError where a window is longer than the bins, or where the scaler was fitted on other variables.
    """
    _check_grid(measurements, scaler, _positive("bin_hours", bin_hours), num_bins)
    if len(statics.values) != len(measurements.window_hours):
        raise ValueError(f"{len(statics.values)} rows of statics for {len(measurements.window_hours)} of measurements.")
    num_rows, num_variables = len(measurements.window_hours), len(measurements.names)
    shape = (num_rows, num_bins, num_variables)
    values, since = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    observed = np.zeros(shape, bool)
    starts = np.arange(num_bins) * bin_hours
    time_mask = (starts < measurements.window_hours[:, None]) | (starts == 0)
    step = max(1, _CHUNK_CELLS // max(num_bins * num_variables, 1))
    for first in range(0, num_rows, step):
        rows = slice(first, min(first + step, num_rows))
        values[rows], observed[rows], since[rows] = _fill_bins(measurements, scaler, rows, time_mask[rows], bin_hours)
    return VitalsGrid(
        values=values,
        observed=observed,
        hours_since=since,
        time_mask=time_mask,
        statics=scaler.encode_statics(statics),
        has_vitals=np.diff(measurements.offsets) > 0,
    )


def _fill_bins(
    measurements: Measurements, scaler: Scaler, rows: slice, time_mask: np.ndarray, bin_hours: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, observed and hours since of some rows, [n T K]."""
    shape = (*time_mask.shape, len(measurements.names))
    begin, end = measurements.offsets[rows.start], measurements.offsets[rows.stop]
    hours, variable = measurements.hours[begin:end], measurements.variable[begin:end]
    row = np.repeat(np.arange(shape[0]), np.diff(measurements.offsets[rows.start : rows.stop + 1]))
    last_bin = time_mask.sum(axis=1) - 1
    bins = np.minimum((hours / bin_hours).astype(np.int64), last_bin[row])
    cell = (row * shape[1] + bins) * shape[2] + variable
    num_cells = int(np.prod(shape))
    count = np.bincount(cell, minlength=num_cells).reshape(shape)
    total = np.bincount(cell, scaler.scale(variable, measurements.value[begin:end]), num_cells).reshape(shape)
    observed = count > 0
    mean = (total / np.maximum(count, 1)).astype(np.float32)

    # Bin 0 of a variable not yet seen holds 0, the train mean, so it may stand for "none".
    source = np.where(observed, np.arange(shape[1])[:, None], 0)
    values = np.take_along_axis(mean, np.maximum.accumulate(source, axis=1), axis=1)
    latest = np.zeros(num_cells, np.float32)
    latest[cell] = hours  # of several in a cell the last one, as they are in the order of time
    latest = np.maximum.accumulate(latest.reshape(shape), axis=1)
    bin_end = np.minimum((np.arange(shape[1]) + 1) * bin_hours, measurements.window_hours[rows][:, None])
    since = np.maximum(bin_end[:, :, None] - latest, 0)
    return values * time_mask[:, :, None], observed, since * time_mask[:, :, None]


def _check_grid(measurements: Measurements, scaler: Scaler, bin_hours: float, num_bins: int) -> None:
    if scaler.names != measurements.names:
        raise ValueError(f"the scaler was fitted on {scaler.names}, the measurements are {measurements.names}.")
    longest = float(measurements.window_hours.max(initial=0))
    if num_bins < 1 or longest > num_bins * bin_hours * (1 + 1e-6):
        raise ValueError(
            f"num_bins={num_bins} bins of {bin_hours:g} h do not hold a window of {longest:g} h: take at least "
            f"{int(np.ceil(longest / bin_hours))}, or a shorter window."
        )


def _positive(name: str, value: float) -> float:
    if not (value > 0 and np.isfinite(value)):
        raise ValueError(f"{name}={value} must be above 0 hours and finite.")
    return value
