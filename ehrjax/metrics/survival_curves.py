"""Kaplan-Meier and Aalen-Johansen curves, and the censoring distribution, under one or many weightings of the rows.

Times are days from the index time [n], events are 0 (censored) or the number of the cause, 1.. [n]. At equal times
events come before censorings: whoever is censored at t was seen to be free of events at t. Curves are right-continuous
steps. Weights of k equal k copies of a row; intervals are for unweighted rows.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int
from scipy.special import ndtri

from ehrjax.types import Array

CONFIDENCE = 0.95


class KaplanMeier(NamedTuple):
    """P(no event until t and at t), after each of T distinct times."""

    times: Float[Array, "T"]
    survival: Float[Array, "T"]

    def at(self, times: Float[Array, "..."]) -> Float[Array, "..."]:
        """Survival at any times: 1 before the first, NaN past the last unless nobody was left."""
        is_complete = len(self.times) > 0 and self.survival[-1] == 0
        return _step(self.times, self.survival, times, start=1.0, is_complete=is_complete)


class AalenJohansen(NamedTuple):
    """P(event of cause r by t), after each of T distinct times; column r - 1 belongs to cause r."""

    times: Float[Array, "T"]
    incidence: Float[Array, "T R"]

    def at(self, times: Float[Array, "..."]) -> Float[Array, "... R"]:
        """Incidence at any times: 0 before the first, NaN past the last unless nobody was left."""
        is_complete = len(self.times) > 0 and bool(np.isclose(self.incidence[-1].sum(), 1.0, rtol=0, atol=1e-12))
        return _step(self.times, self.incidence, times, start=0.0, is_complete=is_complete)


def kaplan_meier(times: Float[Array, "n"], events: Int[Array, "n"], weights: Float[Array, "n"] = None) -> KaplanMeier:
    """Survival free of any event (Kaplan and Meier, 1958)."""
    table = life_table(times, events)
    return KaplanMeier(table.times, table.survival(_column(weights, len(table.events)))[:, 0])


def aalen_johansen(
    times: Float[Array, "n"],
    events: Int[Array, "n"],
    weights: Float[Array, "n"] = None,
    *,
    num_causes: int | None = None,
) -> AalenJohansen:
    """Cumulative incidence of each cause, the others competing (Aalen and Johansen, 1978).

    There are as many causes as the highest event number, unless `num_causes` says so.
    """
    table = life_table(times, events)
    weights = _column(weights, len(table.events))
    num_causes = int(np.max(table.events, initial=0)) if num_causes is None else num_causes
    columns = [table.incidence(weights, cause)[:, 0] for cause in range(1, num_causes + 1)]
    return AalenJohansen(table.times, np.reshape(columns, (num_causes, len(table.times))).T)


def kaplan_meier_interval(
    times: Float[Array, "n"], events: Int[Array, "n"], confidence: float = CONFIDENCE
) -> tuple[Float[Array, "T"], Float[Array, "T"]]:
    """Pointwise (low, high) of `kaplan_meier`, Greenwood's variance on the log(-log) scale; NaN where S is 0 or 1."""
    table = life_table(times, events)
    at_risk, num_events = _counts(table)
    survival = table.survival(_column(None, len(table.events)))[:, 0]
    variance = survival**2 * np.cumsum(ratio_or_zero(num_events, at_risk * (at_risk - num_events)))
    return log_log_interval(survival, variance, confidence)


def aalen_johansen_interval(
    times: Float[Array, "n"], events: Int[Array, "n"], cause: int = 1, confidence: float = CONFIDENCE
) -> tuple[Float[Array, "T"], Float[Array, "T"]]:
    """Pointwise (low, high) of one cause's incidence on the log(-log) scale; NaN where it is 0 or 1.

    Delta-method variance (Collett, 2015, Modelling Survival Data in Medical Research, section 12.3): a sum over
    times s <= t of terms in F(t) - F(s), expanded so that it is made of cumulative sums.
    """
    table = life_table(times, events)
    weights = _column(None, len(table.events))
    at_risk, num_events = _counts(table)
    of_cause = table.by_time @ (table.events == cause).astype(np.float64)
    before = np.append(1.0, table.survival(weights)[:-1, 0])[: len(table.times)]
    incidence = table.incidence(weights, cause)[:, 0]

    any_event = ratio_or_zero(num_events, at_risk * (at_risk - num_events))
    own = before**2 * of_cause * ratio_or_zero(at_risk - of_cause, at_risk**3)
    crossed = before * ratio_or_zero(of_cause, at_risk**2)
    square = [np.cumsum(any_event * incidence**power) for power in range(3)]
    linear = [np.cumsum(crossed * incidence**power) for power in range(2)]
    variance = incidence**2 * square[0] - 2 * incidence * square[1] + square[2]
    variance += np.cumsum(own) - 2 * (incidence * linear[0] - linear[1])
    return log_log_interval(incidence, np.maximum(variance, 0.0), confidence)


def log_log_interval(
    probability: Float[Array, "T"], variance: Float[Array, "T"], confidence: float = CONFIDENCE
) -> tuple[Float[Array, "T"], Float[Array, "T"]]:
    """(low, high) of a probability, symmetric on the log(-log) scale; NaN where the probability is 0 or 1."""
    inside = (probability > 0) & (probability < 1)
    log_p = np.log(np.where(inside, probability, 0.5))
    half_width = ndtri(0.5 + confidence / 2) * np.sqrt(variance) / (np.where(inside, probability, 0.5) * -log_p)
    half_width = np.minimum(half_width, 100.0)  # an interval of all of [0, 1], without overflow
    return tuple(np.where(inside, np.exp(log_p * np.exp(sign * half_width)), np.nan) for sign in (1, -1))


class LifeTable(NamedTuple):
    """Rows by time, ready to be weighted: curves of R weightings [n, R] are columns [T, R]."""

    times: Float[Array, "T"]  # distinct, ascending
    events: Int[Array, "n"]
    place: Int[Array, "n"]  # of each row's time in `times`
    by_time: sp.csr_matrix  # [T, n]: sums values of rows at each time

    @property
    def row_times(self) -> Float[Array, "n"]:
        """The time of each row."""
        return self.times[self.place]

    def at_risk(self, weights: Float[Array, "n R"]) -> Float[Array, "T R"]:
        """Weight of rows seen until t or longer."""
        return np.cumsum((self.by_time @ weights)[::-1], axis=0)[::-1]

    def survival(self, weights: Float[Array, "n R"]) -> Float[Array, "T R"]:
        """Kaplan-Meier after each time."""
        num_events = self.by_time @ (weights * (self.events > 0)[:, None])
        return np.cumprod(1.0 - ratio_or_zero(num_events, self.at_risk(weights)), axis=0)

    def incidence(self, weights: Float[Array, "n R"], cause: int) -> Float[Array, "T R"]:
        """Aalen-Johansen of one cause after each time."""
        of_cause = self.by_time @ (weights * (self.events == cause)[:, None])
        before = _after_none(self.survival(weights))[:-1]
        return np.cumsum(before * ratio_or_zero(of_cause, self.at_risk(weights)), axis=0)

    def incidence_at(self, weights: Float[Array, "n R"], cause: int, horizon: float) -> Float[Array, "R"]:
        """The incidence at one horizon, NaN where follow-up ends before it with somebody left."""
        last = np.searchsorted(self.times, horizon, side="right")
        curve = np.vstack([np.zeros(weights.shape[1]), self.incidence(weights, cause)])
        has_follow_up = (weights * (self.row_times >= horizon)[:, None]).any(axis=0)
        all_gone = _after_none(self.survival(weights))[-1] == 0
        return np.where(has_follow_up | all_gone, curve[last], np.nan)

    def uncensored_before(self, weights: Float[Array, "n R"]) -> Float[Array, "T+1 R"]:
        """P(censoring at t or later) at each time and past the last: Kaplan-Meier of censoring, events coming first."""
        censored = self.by_time @ (weights * (self.events == 0)[:, None])
        later = np.vstack([self.at_risk(weights)[1:], np.zeros((min(1, len(self.times)), weights.shape[1]))])
        return _after_none(np.cumprod(1.0 - ratio_or_zero(censored, later + censored), axis=0))


def life_table(times: Float[Array, "n"], events: Int[Array, "n"]) -> LifeTable:
    """Sort once. Times have to be finite and not negative, events whole numbers from 0."""
    times, events = np.asarray(times, np.float64), np.asarray(events)
    if times.ndim != 1 or times.shape != events.shape:
        raise ValueError(f"times have shape {times.shape} but events {events.shape}: give one of each a row.")
    _refuse("time", times, ~(np.isfinite(times) & (times >= 0)), "is not a number of days from 0")
    _refuse("event", events, ~((events >= 0) & (events == np.floor(events))), "is not 0 or the number of a cause")
    distinct, place = np.unique(times, return_inverse=True)
    by_time = sp.csr_matrix((np.ones(len(times)), (place, np.arange(len(times)))), shape=(len(distinct), len(times)))
    return LifeTable(distinct, events.astype(np.int64), place, by_time)


def ratio_or_zero(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Element-wise quotient, 0 where the denominator is not positive."""
    return np.divide(numerator, denominator, out=np.zeros(np.shape(denominator)), where=denominator > 0)


def _refuse(name: str, values: np.ndarray, wrong: np.ndarray, what: str) -> None:
    rows = np.flatnonzero(wrong)
    if len(rows):
        raise ValueError(f"{name} {values[rows[0]]:g} in row {rows[0]} {what}: mask such rows out, or mend the labels.")


def _column(weights: Array, num_rows: int) -> np.ndarray:
    return np.ones((num_rows, 1)) if weights is None else np.asarray(weights, np.float64)[:, None]


def _counts(table: LifeTable) -> tuple[np.ndarray, np.ndarray]:
    at_risk = table.at_risk(_column(None, len(table.events)))[:, 0]
    return at_risk, table.by_time @ (table.events > 0).astype(np.float64)


def _after_none(survival: np.ndarray) -> np.ndarray:
    """The curve with its value before the first time, 1, put in front."""
    return np.vstack([np.ones(survival.shape[1]), survival])


def _step(knots: np.ndarray, values: np.ndarray, times: Array, *, start: float, is_complete: bool) -> np.ndarray:
    times = np.asarray(times, np.float64)
    steps = np.concatenate([np.full((1, *values.shape[1:]), start), values])
    found = steps[np.searchsorted(knots, times, side="right")]
    is_past = times > (knots[-1] if len(knots) else -np.inf)
    if is_complete:
        return found
    return np.where(is_past.reshape(is_past.shape + (1,) * (values.ndim - 1)), np.nan, found)
