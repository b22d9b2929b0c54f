"""Relative hazards and risks: what lets the regressions of `baselines` stand for Cox models.

Cox's partial likelihood is that of a Poisson model whose exposure is the cumulative baseline hazard at each row's time
(Whitehead, 1980, Applied Statistics 29:268). The baselines take the first of Whitehead's iterations: the exposure is
the Nelson-Aalen estimate on train. Other causes censor (cause-specific hazards), and the risk of a cause is its
cumulative incidence. Labels are (days, event): 0 censored, 1..R the cause.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ehrjax.metrics.survival_curves import aalen_johansen
from ehrjax.types import Array

NUM_STEPS = 64  # of the incidence of competing causes; a single cause is exact


class CumulativeHazard(NamedTuple):
    """Nelson-Aalen estimate: hazard increments at the distinct event times (days, ascending)."""

    times: Float[Array, "T"]
    increments: Float[Array, "T"]

    def at(self, times: Float[Array, "n"]) -> Float[Array, "n"]:
        """Cumulative hazard up to and including the given times."""
        return np.r_[0.0, np.cumsum(self.increments)][np.searchsorted(self.times, times, side="right")]


def nelson_aalen(times: Float[Array, "n"], is_event: Float[Array, "n"]) -> CumulativeHazard:
    """Events over patients at risk at each event time (Aalen, 1978); without an event the hazard is 0."""
    times, is_event = np.asarray(times, np.float64), np.asarray(is_event, bool)
    event_times, counts = np.unique(times[is_event], return_counts=True)
    at_risk = len(times) - np.searchsorted(np.sort(times), event_times, side="left")
    return CumulativeHazard(event_times, counts / at_risk)


def marginal_incidence(
    times: Float[Array, "n"], events: Int[Array, "n"], num_causes: int, horizons: Sequence[float]
) -> Float[Array, "R H"]:
    """Aalen-Johansen incidence of each cause at the horizons (days); one cause: 1 less the Kaplan-Meier survival."""
    curve = aalen_johansen(times, events, num_causes=num_causes)
    return curve.at(np.minimum(horizons, np.max(times))).T  # where nobody is followed up any longer, the last value


def incidence_at(
    hazards: Sequence[CumulativeHazard], relative: Float[Array, "n R"], horizons: Sequence[float]
) -> Float[Array, "n R H"]:
    """Cumulative incidence of each row and cause at the horizons (days), hazards being `relative` times `hazards`.

    Within a step of the time grid the causes keep their shares, which only competing causes notice.
    """
    horizons = np.asarray(horizons, np.float64)
    event_times = np.concatenate([hazard.times for hazard in hazards])
    inner = np.quantile(event_times, np.linspace(0, 1, NUM_STEPS)) if len(hazards) > 1 and len(event_times) else []
    edges = np.unique(np.r_[horizons, inner])
    increments = np.diff(np.stack([hazard.at(edges) for hazard in hazards]), axis=1, prepend=0.0)
    survival, incidence = np.ones(len(relative)), np.zeros(relative.shape)
    found = np.zeros((*relative.shape, len(horizons)))
    for edge, increment in zip(edges, increments.T, strict=True):
        step = relative * increment
        total = step.sum(axis=1)
        share = np.divide(step, total[:, None], out=np.zeros_like(step), where=total[:, None] > 0)
        incidence = incidence + (survival * -np.expm1(-total))[:, None] * share
        survival = survival * np.exp(-total)
        found[:, :, horizons == edge] = incidence[:, :, None]
    return found
