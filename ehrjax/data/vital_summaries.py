"""Irregular measurements as a table: statistics of each variable over the window and its last hours.

`summarize` gives one row of raw statistics an index row, NaN where a statistic does not exist. `QuantileTransform.fit`
sees the train rows only; it maps each column, or each variable's measurements, to a standard normal by its rank (van
der Waerden scores), which tames the heavy tails of laboratory values without a choice for each of them.
"""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import ndtri

from ehrjax.data.vitals import Measurements

WINDOW_STATISTICS = ("count", "first", "last", "min", "max", "mean", "slope", "hours_since")
RECENT_STATISTICS = ("count", "min", "max", "mean")
RECENT_HOURS = (24.0, 12.0)
_MIN_SLOPE_COUNT, _MIN_SLOPE_HOURS = 3, 0.5  # fewer or closer measurements give slopes of mere noise
_LARGEST_RANK = 0.998  # of a train set whose quantiles are known to 1/200
_NUM_QUANTILES = 201


class Summaries(NamedTuple):
    """F statistics of N index rows; NaN where the variable was not measured (a count is 0 there)."""

    names: tuple[str, ...]  # "heart_rate/mean", of the last 24 hours "heart_rate/mean_24h"
    values: Float[np.ndarray, "N F"]


def summarize(measurements: Measurements, *, recent_hours: Sequence[float] = RECENT_HOURS) -> Summaries:
    """Statistics of each variable over the whole window, and fewer over each of its last `recent_hours`.

    Whole window: number of measurements, first, last, minimum, maximum, mean, least-squares slope per hour (of at least
    three measurements) and hours from the last one to the index time. Raises ValueError naming the row of a measurement
    that is outside its window, or recent hours that are not above 0.
    """
    row = np.repeat(np.arange(len(measurements.window_hours)), np.diff(measurements.offsets))
    before = measurements.window_hours.astype(np.float64)[row] - measurements.hours  # hours before the index time
    _check_inside(row, before, measurements)
    names, columns = _name("", WINDOW_STATISTICS, measurements), [_statistics(measurements, row, before)]
    columns = [columns[0][statistic] for statistic in WINDOW_STATISTICS]
    for hours in recent_hours:
        if not hours > 0:
            raise ValueError(f"recent_hours={tuple(recent_hours)}: each must be above 0.")
        recent = _statistics(measurements, row, before, before <= hours)
        names += _name(f"_{hours:g}h", RECENT_STATISTICS, measurements)
        columns += [recent[statistic] for statistic in RECENT_STATISTICS]
    return Summaries(tuple(names), np.concatenate(columns, axis=1).astype(np.float32))


def _name(suffix: str, statistics: Sequence[str], measurements: Measurements) -> list[str]:
    return [f"{variable}/{statistic}{suffix}" for statistic in statistics for variable in measurements.names]


def _check_inside(row: np.ndarray, before: np.ndarray, measurements: Measurements) -> None:
    # Hours are float32: a measurement at the index time itself may be a few millionths off.
    outside = np.flatnonzero((before < -1e-3) | (measurements.hours < 0) | ~np.isfinite(measurements.value))
    if len(outside):
        i = outside[0]
        raise ValueError(
            f"row {row[i]}: {measurements.names[measurements.variable[i]]} = {measurements.value[i]} at hour "
            f"{measurements.hours[i]:g} of a window of {measurements.window_hours[row[i]]:g} h: use finite values from "
            "the window's start to the index time, as `collect_measurements` gives them."
        )


def _statistics(
    measurements: Measurements, row: np.ndarray, before: np.ndarray, chosen: np.ndarray | None = None
) -> dict[str, Float[np.ndarray, "N K"]]:
    """Every statistic of the chosen measurements, each [N K]."""
    shape = (len(measurements.window_hours), len(measurements.names))
    cell = row * shape[1] + measurements.variable
    order = np.argsort(cell, kind="stable")  # stable: within a cell the order of time stays
    order = order if chosen is None else order[chosen[order]]
    cell, value, before = cell[order], measurements.value[order].astype(np.float64), before[order]
    is_first = np.append(True, cell[1:] != cell[:-1])[: len(cell)]
    first = np.flatnonzero(is_first)
    group = np.cumsum(is_first) - 1
    count = np.bincount(group, minlength=len(first)).astype(np.float64)
    mean = np.bincount(group, value, len(first)) / count

    def spread(values: np.ndarray, fill: float = np.nan) -> np.ndarray:
        table = np.full(shape[0] * shape[1], fill)
        table[cell[first]] = values
        return table.reshape(shape)

    last = first + count.astype(np.int64) - 1
    return {
        "count": spread(count, 0.0),
        "first": spread(value[first]),
        "last": spread(value[last]),
        "min": spread(np.minimum.reduceat(value, first) if len(first) else value),
        "max": spread(np.maximum.reduceat(value, first) if len(first) else value),
        "mean": spread(mean),
        "slope": spread(_slope(group, -before, value - mean[group], count)),
        "hours_since": spread(np.maximum(before[last], 0.0)),
    }


def _slope(group: np.ndarray, hours: np.ndarray, deviation: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Least-squares slope of each group, NaN of one too small to have a meaningful one."""
    hours = hours - (np.bincount(group, hours, len(count)) / count)[group]
    variance = np.bincount(group, hours * hours, len(count))
    is_known = (count >= _MIN_SLOPE_COUNT) & (variance >= count * _MIN_SLOPE_HOURS**2)
    return np.where(
        is_known, np.bincount(group, hours * deviation, len(count)) / np.where(is_known, variance, 1), np.nan
    )


@dataclass(frozen=True)
class QuantileTransform:
    """Ranks among the train values of each of F columns, as standard normal scores within -2.9 and 2.9.

    Ties share the middle of their ranks. `is_used` is False for a column that `fit` found constant or too seldom there.
    """

    names: tuple[str, ...]
    quantiles: Float[np.ndarray, "F Q"]  # NaN for a column that is not used

    @classmethod
    def fit(
        cls, names: Sequence[str], column: Int[np.ndarray, "M"], value: Float[np.ndarray, "M"], *, min_count: int = 1
    ) -> "QuantileTransform":
        """From train values and the column that each belongs to; NaN is left out.

        Columns with fewer than `min_count` values, or one value only, are not used.
        """
        known = np.isfinite(value)
        order = np.argsort(column[known], kind="stable")
        parts = np.split(value[known][order], np.cumsum(np.bincount(column[known], minlength=len(names)))[:-1])
        quantiles = np.full((len(names), _NUM_QUANTILES), np.nan, np.float32)
        for index, part in enumerate(parts[: len(names)]):
            if len(part) >= max(min_count, 1) and part.min() < part.max():
                quantiles[index] = np.quantile(part, np.linspace(0, 1, _NUM_QUANTILES))
        return cls(tuple(names), quantiles)

    @classmethod
    def fit_summaries(
        cls, summaries: Summaries, train_rows: np.ndarray, *, min_present: float = 0.1
    ) -> "QuantileTransform":
        """From the train rows, by index or mask; columns known in less than a share of `min_present` are not used."""
        table = summaries.values[train_rows]
        if not len(table):
            raise ValueError(f"none of the {len(summaries.values)} rows is a train row: there is nothing to fit on.")
        column = np.broadcast_to(np.arange(table.shape[1]), table.shape).ravel()
        min_count = int(np.ceil(min_present * len(table)))
        return cls.fit(summaries.names, column, table.ravel(), min_count=min_count)

    @classmethod
    def fit_measurements(cls, measurements: Measurements, train_rows: np.ndarray) -> "QuantileTransform":
        """From all measurements of the train rows, a column a variable."""
        is_train = np.zeros(len(measurements.window_hours), bool)
        is_train[train_rows] = True
        seen = np.repeat(is_train, np.diff(measurements.offsets))
        return cls.fit(measurements.names, measurements.variable[seen], measurements.value[seen])

    @property
    def is_used(self) -> np.ndarray:
        return ~np.isnan(self.quantiles[:, 0])

    def scores(self, column: Int[np.ndarray, "M"], value: Float[np.ndarray, "M"]) -> Float[np.ndarray, "M"]:
        """Normal scores; 0, the median, where the value is NaN or its column is not used."""
        scores = np.zeros(len(value), np.float32)
        order = np.argsort(column, kind="stable")
        ends = np.cumsum(np.bincount(column, minlength=len(self.names)))
        ranks = np.linspace(0, 1, _NUM_QUANTILES)
        for index in np.flatnonzero(self.is_used):
            part = order[(ends[index - 1] if index else 0) : ends[index]]
            part = part[np.isfinite(value[part])]
            known, grid = value[part], self.quantiles[index]
            lowest, highest = np.interp(known, grid, ranks), 1 - np.interp(-known, -grid[::-1], ranks)
            scores[part] = ndtri(np.clip((lowest + highest) / 2, 1 - _LARGEST_RANK, _LARGEST_RANK))
        return scores

    def encode_summaries(self, summaries: Summaries) -> Float[np.ndarray, "N U"]:
        """Scores of the U columns in use. That a statistic is missing (score 0) can be told from the counts."""
        self._check(summaries.names)
        used = np.flatnonzero(self.is_used)
        table = summaries.values[:, used]
        column = np.broadcast_to(used, table.shape).ravel()
        return self.scores(column, table.ravel()).reshape(table.shape)

    def encode_measurements(self, measurements: Measurements) -> Measurements:
        """The same measurements with scores for values: put them on a grid by a scaler fitted on these."""
        self._check(measurements.names)
        return measurements._replace(value=self.scores(measurements.variable, measurements.value))

    def save(self, path: str | Path) -> None:
        """Write names and quantiles as .npz."""
        with Path(path).open("wb") as file:
            np.savez(file, names=np.array(self.names), quantiles=self.quantiles)

    @classmethod
    def load(cls, path: str | Path) -> "QuantileTransform":
        """Read what `save` wrote. Raises FileNotFoundError, or ValueError naming the file."""
        try:
            # Opened here, since np.load leaves a broken archive open.
            with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return cls(tuple(arrays["names"].tolist()), arrays["quantiles"])
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: is not a saved quantile transform ({error}): fit it again.") from error

    def _check(self, names: Sequence[str]) -> None:
        if tuple(names) != self.names:
            different = next((pair for pair in zip(self.names, names, strict=False) if pair[0] != pair[1]), None)
            what = f"{different[0]!r} became {different[1]!r}" if different else f"{len(names)} of {len(self.names)}"
            raise ValueError(f"the transform was fitted on other columns ({what}): fit it on the train rows of these.")
