"""True probabilities of the simulator's outcomes, exact under its generative model.

For a state s of the chain and h weeks to go, f(s, h) = sum over events e of p(e | s, age band) x [1 if e is the
outcome, 0 if it is another death, f(s after e, h - 1) otherwise], solved backward from f(s, 0) = 0 as a sparse matrix
product over all 41,216 states at once, with the age band of each coming week. Two forms:

- `probability_latent` is f at the true state, subtype included.
- `probability_recorded` is the mean of f over P(subtype | record): Bayes' rule on everything recorded up to the index
  time that depends on the subtype, which is the state at entry, each week's event or its absence, and the codes drawn
  from the pools of `simulate_records`. No predictor that reads the record can be better in expectation.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import sparse

from ehrjax.data import simulate_chain as chain


class OracleTask(NamedTuple):
    """An outcome of the chain within a number of weeks."""

    events: tuple[int, ...]
    horizon_weeks: int


ORACLE_TASKS = {
    "diabetes_onset": OracleTask((chain.E_DIABETES,), chain.WEEKS_YEAR),
    "mortality_1y": OracleTask((chain.E_DEATH,), chain.WEEKS_YEAR),
    "readmission_30d": OracleTask(chain.STAY_EVENTS, chain.WEEKS_MONTH),
}


def probability_by_subtype(task: str, states: np.ndarray, age_weeks: np.ndarray) -> np.ndarray:
    """P(outcome within the task's horizon | state, subtype) for every subtype, float64 [n, 4].

    `states` (flat, int [n]) hold at the index time; `age_weeks` (int [n]) is the age in the week of the index time.
    """
    horizon = ORACLE_TASKS[task].horizon_weeks
    rows = np.asarray(states)[:, None] % chain.STATES_A_SUBTYPE
    rows = rows + np.arange(len(chain.SUBTYPES)) * chain.STATES_A_SUBTYPE
    next_week = np.asarray(age_weeks) + 1
    band = chain.bands_of(next_week)
    ends = np.append(chain.BAND_WEEKS, np.iinfo(np.int64).max)[band]
    weeks_left = np.minimum(ends - next_week, horizon)  # how many of the coming weeks lie in the present band
    result = np.empty(rows.shape)
    for b in np.unique(band):
        here = np.flatnonzero((band == b) & (weeks_left == horizon))
        result[here] = _one_band(task, int(b))[rows[here], horizon]
        _fill_crossing(task, int(b), rows, np.where(band == b, weeks_left, horizon), result)
    return result


def _fill_crossing(task: str, band: int, rows, weeks_left, result) -> None:
    """Fill `result` where the next band begins within the horizon, i.e. `weeks_left < horizon`."""
    horizon = ORACLE_TASKS[task].horizon_weeks
    crossing = np.flatnonzero(weeks_left < horizon)
    if not len(crossing):
        return
    matrix, outcome = _transitions(task, band)
    # Column m starts as f with m weeks left at the moment of crossing and walks back into the younger band.
    columns = _one_band(task, band + 1)[:, :horizon]
    for weeks in range(1, int(weeks_left[crossing].max()) + 1):
        columns = matrix @ columns[:, : horizon - weeks + 1] + outcome[:, None]
        here = crossing[weeks_left[crossing] == weeks]
        result[here] = columns[rows[here], horizon - weeks]


@lru_cache(maxsize=4 * chain.NUM_BANDS)
def _one_band(task: str, band: int) -> np.ndarray:
    """f for 0..horizon weeks to go while all of them lie in one age band, float64 [NUM_STATES, horizon + 1]."""
    matrix, outcome = _transitions(task, band)
    values = np.zeros((ORACLE_TASKS[task].horizon_weeks + 1, chain.NUM_STATES))
    for weeks in range(1, len(values)):
        values[weeks] = matrix @ values[weeks - 1] + outcome
    return np.ascontiguousarray(values.T)


def _transitions(task: str, band: int) -> tuple[sparse.csr_array, np.ndarray]:
    """Weekly transition probabilities among states that go on, and the chance of the outcome from each state."""
    tables = chain.build_chain()
    probability = tables.probability[band]
    ending = set(ORACLE_TASKS[task].events) | {chain.E_DEATH}
    goes_on = [event for event in range(chain.NUM_EVENTS) if event not in ending]
    columns = [tables.target[chain.E_NONE], *(tables.target[event] for event in goes_on)]
    weights = [1.0 - probability.sum(-1), *(probability[:, event] for event in goes_on)]
    here = np.tile(np.arange(chain.NUM_STATES), len(columns))
    shape = (chain.NUM_STATES, chain.NUM_STATES)
    matrix = sparse.coo_array((np.concatenate(weights), (here, np.concatenate(columns))), shape).tocsr()
    matrix.eliminate_zeros()
    return matrix, probability[:, list(ORACLE_TASKS[task].events)].sum(-1)


def subtype_posterior(log_likelihood: np.ndarray) -> np.ndarray:
    """P(subtype | record), float64 [n, 4], from the record's log-likelihood under each subtype."""
    score = log_likelihood.astype(np.float64) + np.log(chain.SUBTYPE_PRIOR)
    score = np.exp(score - score.max(1, keepdims=True))
    return score / score.sum(1, keepdims=True)


def oracle_probabilities(task: str, states, age_weeks, log_likelihood) -> tuple[np.ndarray, np.ndarray]:
    """(latent, recorded) probabilities, float32 [n] each; `log_likelihood` is [n, 4] up to the index time."""
    by_subtype = probability_by_subtype(task, states, age_weeks)
    subtype = np.asarray(states) // chain.STATES_A_SUBTYPE
    latent = np.take_along_axis(by_subtype, subtype[:, None], 1)[:, 0]
    recorded = (by_subtype * subtype_posterior(log_likelihood)).sum(1)
    return latent.astype(np.float32), recorded.astype(np.float32)
