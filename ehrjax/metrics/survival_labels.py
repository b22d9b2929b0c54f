"""Labels (days, event) [n, 2] and risks [n, H] of survival metrics, checked; and whose outcome is known when."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from ehrjax.metrics.survival_curves import LifeTable, life_table, ratio_or_zero
from ehrjax.types import Array


def check_survival(labels: Float[Array, "n 2"]) -> LifeTable:
    """Labels (days, event number) by time; a ValueError names the row that is neither."""
    labels = np.asarray(labels, np.float64)
    if labels.size == 0:
        labels = np.zeros((0, 2))
    if labels.ndim != 2 or labels.shape[1] != 2:
        raise ValueError(f"labels have shape {labels.shape}: survival metrics need (days, event number), [n, 2].")
    return life_table(labels[:, 0], labels[:, 1])


def check_horizons(horizons: Sequence[float]) -> np.ndarray:
    """Horizons in days, above 0 and ascending."""
    days = np.asarray(horizons, np.float64)
    if days.ndim != 1 or len(days) == 0 or not np.all(np.diff(days, prepend=0.0) > 0) or not np.isfinite(days[-1]):
        raise ValueError(f"horizons={horizons} have to be days above 0 in ascending order.")
    return days


def risk_scores(scores: Array, num_rows: int) -> Float[Array, "n"]:
    """One finite risk a row: scores [n], or the last column of [n, H], the incidence at the longest horizon."""
    scores = _finite(scores, num_rows)
    return scores[:, -1] if scores.ndim == 2 else scores


def horizon_risks(scores: Array, num_rows: int, horizons: Sequence[float]) -> Float[Array, "n H"]:
    """A finite risk for each horizon; scores [n] are the same risk at all of them."""
    horizons, scores = check_horizons(horizons), _finite(scores, num_rows)
    if scores.ndim == 1:
        return np.repeat(scores[:, None], len(horizons), axis=1)
    if scores.shape[1] != len(horizons):
        raise ValueError(f"scores have {scores.shape[1]} columns for {len(horizons)} horizons: give one each.")
    return scores


def incidences(scores: Array, num_rows: int, horizons: Sequence[float]) -> Float[Array, "n H"]:
    """`horizon_risks` that are probabilities of the event by each horizon."""
    risks = horizon_risks(scores, num_rows, horizons)
    wrong = np.argwhere((risks < 0) | (risks > 1))
    if len(wrong):
        row, column = wrong[0]
        raise ValueError(f"score {risks[row, column]:g} in row {row} is not a probability of the event by a horizon.")
    return risks


def known_at(
    table: LifeTable, horizon: float, cause: int
) -> tuple[Float[Array, "n"], Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]]:
    """Who had the event by the horizon, and weights [n, R] -> (those for censoring [n, R], defined [R]).

    A row censored before the horizon weighs nothing: others, known for as long, stand for it.
    """
    had_event = (table.events > 0) & (table.row_times <= horizon)
    is_known = had_event | (table.row_times >= horizon)
    end = np.searchsorted(table.times, horizon, side="left")
    known_until = np.where(had_event, table.place, end)

    def known(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        uncensored = table.uncensored_before(weights)
        inverse = ratio_or_zero(1.0, uncensored).take(known_until, axis=0)
        return weights * inverse * is_known[:, None], uncensored[end] > 0

    return (had_event & (table.events == cause)).astype(np.float64), known


def _finite(scores: Array, num_rows: int) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if scores.ndim not in (1, 2) or len(scores) != num_rows:
        raise ValueError(f"scores have shape {scores.shape} for {num_rows} labels: give [n] or [n, horizons].")
    wrong = np.argwhere(~np.isfinite(scores))
    if len(wrong):
        raise ValueError(f"scores hold a non-finite value in row {wrong[0][0]}: mask such rows out, or mend the model.")
    return scores
