"""What a survival model fits on train rows before or after training, on the host: the time grid and Cox's baseline."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ehrjax.types import Array


@dataclass(frozen=True)
class TimeGrid:
    """J intervals of follow-up in days: `edges[0]` is 0 and `edges[J]` the horizon; interval j is (e_j, e_j+1].

    An event on an edge belongs to the interval that ends there, one at time 0 to the first. The grid is hashable, and
    `TimeGrid(**json.loads(json.dumps(asdict(grid))))` is the same grid.
    """

    edges: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "edges", tuple(map(float, self.edges)))
        steps = np.diff(np.asarray(self.edges, np.float32))
        if len(steps) == 0 or self.edges[0] != 0 or not (np.isfinite(steps) & (steps > 0)).all():
            raise ValueError(f"edges={self.edges} must rise from 0 to a finite horizon, distinct in float32.")

    @property
    def num_intervals(self) -> int:
        return len(self.edges) - 1

    @property
    def horizon_days(self) -> float:
        return self.edges[-1]

    def locate(self, times: Sequence[float]) -> tuple[Int[np.ndarray, "n"], Float[np.ndarray, "n"]]:
        """The interval of each time and the share of it that has passed by then; ValueError outside the grid."""
        edges, times = np.asarray(self.edges), np.asarray(times, float)
        outside = ~((times >= 0) & (times <= edges[-1]))
        if outside.any():
            raise ValueError(f"time {times[outside][0]} is outside 0 to {edges[-1]:g} days, where the model speaks.")
        interval = np.maximum(np.searchsorted(edges, times) - 1, 0)
        return interval, (times - edges[interval]) / np.diff(edges)[interval]


def fit_time_grid(
    times: Float[Array, "n"], events: Int[Array, "n"], *, horizon_days: float, num_intervals: int
) -> TimeGrid:
    """Edges at quantiles of the event times (of any cause) within the horizon: about as many events an interval.

    Give it the rows of train that count, and no others. Edges are observed times. Ties and few events leave fewer
    intervals than asked for, but always one: read `grid.num_intervals`. Rows without a known time are not used.
    """
    if num_intervals < 1:
        raise ValueError(f"num_intervals={num_intervals} must be at least 1: 10 to 30 is usual.")
    times = np.asarray(times, np.float32)
    horizon = np.float32(horizon_days)
    event_times = times[(np.asarray(events) > 0) & (times <= horizon)]
    interior = np.zeros(0, np.float32)
    if len(event_times):
        interior = np.quantile(event_times, np.arange(1, num_intervals) / num_intervals, method="inverted_cdf")
        interior = np.unique(interior[(interior > 0) & (interior < horizon)])
    return TimeGrid((0.0, *interior.tolist(), float(horizon)))


class BreslowBaseline(NamedTuple):
    """Baseline hazards of a Cox model as step functions, one a cause.

    `log_increments[t, r]` is the log of the rise of cause r's cumulative hazard at `times[t]` (ascending, days) for a
    patient of risk 0; -inf where the cause has no event then.
    """

    times: Float[np.ndarray, "T"]
    log_increments: Float[np.ndarray, "T R"]

    def cumulative_hazard_at(self, times: Sequence[float]) -> Float[np.ndarray, "n R"]:
        """Cumulative baseline hazard at the given days; flat after the last event."""
        return _exp(self._log_hazard_at(times))

    def _log_hazard_at(self, times: Sequence[float]) -> Float[np.ndarray, "n R"]:
        sums = np.logaddexp.accumulate(self.log_increments, axis=0)
        return np.pad(sums, ((1, 0), (0, 0)), constant_values=-np.inf)[self._num_times_by(times)]

    def _num_times_by(self, times: Sequence[float]) -> Int[np.ndarray, "n"]:
        return np.searchsorted(self.times, times, side="right")

    def incidence_at(self, risk: Float[Array, "n R"], horizons: Sequence[float]) -> Float[np.ndarray, "n R H"]:
        """P(event of cause r by each horizon) of patients with log relative hazards `risk`, other causes competing.

        At each event time the survivors are divided as if the hazards of all causes acted evenly up to it, so that
        incidences and survival sum to one. O(n T) with several causes, O(n) with one.
        """
        risk = np.asarray(risk, float).reshape(-1, self.log_increments.shape[1])
        if risk.shape[1] == 1:
            return -np.expm1(-_exp(self._log_hazard_at(horizons).T[None] + risk[:, :, None]))
        columns = self._num_times_by(horizons)
        log_increments = self.log_increments[: max(columns, default=0)]
        rows_each = max(1, 4_000_000 // max(1, log_increments.size))
        blocks = [risk[start : start + rows_each] for start in range(0, len(risk), rows_each)]
        incidences = [_incidence(log_increments, block)[:, columns].swapaxes(1, 2) for block in blocks]
        return np.concatenate([np.zeros((0, risk.shape[1], len(columns))), *incidences])


def _exp(values):
    """e^700 is finite, and beyond any hazard that leaves a survivor."""
    return np.exp(np.minimum(values, 700.0))


def _incidence(log_increments, risk):
    """Cumulative incidence [n T+1 R] before the first event time and after each."""
    hazards = _exp(log_increments[None] + risk[:, None])
    total = hazards.sum(axis=-1, keepdims=True)
    before = np.pad(total.cumsum(axis=1)[:, :-1], ((0, 0), (1, 0), (0, 0)))[:, : total.shape[1]]
    share = hazards / np.where(total > 0, total, 1.0)
    rises = np.exp(-before) * share * -np.expm1(-total)
    return np.pad(rises.cumsum(axis=1), ((0, 0), (1, 0), (0, 0)))


def fit_breslow(times: Float[Array, "n"], events: Int[Array, "n"], risk: Float[Array, "n R"]) -> BreslowBaseline:
    """Breslow's estimator (1972, discussion of Cox, JRSS B 34:216) from train rows and the model's outputs for them.

    At each event time, the number of events of a cause over the summed relative hazards of those still followed up.
    """
    times, events = np.asarray(times, float), np.asarray(events)
    risk = np.asarray(risk, float).reshape(len(times), -1)
    order = np.argsort(times, kind="stable")
    at_risk = np.logaddexp.accumulate(risk[order][::-1], axis=0)[::-1]
    event_times = np.unique(times[events > 0])
    causes = np.arange(1, risk.shape[1] + 1)
    place = np.searchsorted(event_times, times[events > 0])
    counts = np.zeros((len(event_times), len(causes)))
    np.add.at(counts, place, events[events > 0][:, None] == causes)
    with np.errstate(divide="ignore"):
        log_counts = np.log(counts)
    return BreslowBaseline(event_times, log_counts - at_risk[np.searchsorted(times[order], event_times)])
