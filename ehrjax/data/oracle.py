"""True probabilities of the simulator's outcomes, exact under its generative model.

For a state s of the chain and h weeks to go, f(s, h) = sum over events e of p(e | s, age band) x [1 if e is the
outcome, 0 if it is another death, f(s after e, h - 1) otherwise], solved backward from f(s, 0) = 0 by sparse matrix
products over all states of a subtype and sex at once, with the age band of each coming week. Two forms:

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


_BLOCK = chain.STATES_A_SUBTYPE // len(chain.SEXES)  # states of one subtype and sex, which nobody leaves


def probability_by_subtype(task: str, states: np.ndarray, age_weeks: np.ndarray) -> np.ndarray:
    """P(outcome within the task's horizon | state, subtype) for every subtype, float64 [n, 4].

    `states` (flat, int [n]) hold at the index time; `age_weeks` (int [n]) is the age in the week of the index time.
    Raises KeyError for a task that is not in `ORACLE_TASKS`.
    """
    horizon = ORACLE_TASKS[task].horizon_weeks
    next_week = np.asarray(age_weeks) + 1
    band = chain.bands_of(next_week)
    ends = np.append(chain.BAND_WEEKS, np.iinfo(np.int64).max)[band]
    weeks_left = np.minimum(ends - next_week, horizon)  # how many of the coming weeks lie in the present band
    within = np.asarray(states) % _BLOCK
    sex = np.asarray(states) // _BLOCK % len(chain.SEXES)
    result = np.empty((len(within), len(chain.SUBTYPES)))
    for present_band in np.unique(band):
        for present_sex in np.unique(sex):
            rows = np.flatnonzero((band == present_band) & (sex == present_sex))
            for subtype in range(len(chain.SUBTYPES)):
                block = subtype * len(chain.SEXES) + int(present_sex)
                result[rows, subtype] = _solve(task, block, int(present_band), within[rows], weeks_left[rows])
    return result


def _solve(task: str, block: int, band: int, within: np.ndarray, weeks_left: np.ndarray) -> np.ndarray:
    """f at the horizon for states of one block now in one band, of which `weeks_left` weeks are to come."""
    horizon = ORACLE_TASKS[task].horizon_weeks
    result = _one_band(task, block, band)[within, horizon]
    crossing = np.flatnonzero(weeks_left < horizon)
    if not len(crossing):
        return result
    matrix, outcome = (part.astype(np.float32) for part in _transitions(task, block, band))  # half the time of float64
    # Column m starts as f with m weeks left at the moment of crossing and walks back into the younger band.
    columns = _one_band(task, block, band + 1)[:, :horizon].astype(np.float32)
    for weeks in range(1, int(weeks_left[crossing].max()) + 1):
        columns = matrix @ columns[:, : horizon - weeks + 1]
        columns += outcome[:, None]
        here = crossing[weeks_left[crossing] == weeks]
        result[here] = columns[within[here], horizon - weeks]
    return result


@lru_cache(maxsize=2 * chain.NUM_BANDS)
def _one_band(task: str, block: int, band: int) -> np.ndarray:
    """f for 0..horizon weeks to go while all of them lie in one age band, float64 [_BLOCK, horizon + 1]."""
    matrix, outcome = _transitions(task, block, band)
    values = np.zeros((ORACLE_TASKS[task].horizon_weeks + 1, _BLOCK))
    for weeks in range(1, len(values)):
        values[weeks] = matrix @ values[weeks - 1] + outcome
    return np.ascontiguousarray(values.T)


@lru_cache(maxsize=2 * chain.NUM_BANDS)
def _transitions(task: str, block: int, band: int) -> tuple[sparse.csr_array, np.ndarray]:
    """Weekly transition probabilities among a block's states that go on, and the chance of the outcome from each."""
    tables, here = chain.build_chain(), slice(block * _BLOCK, (block + 1) * _BLOCK)
    probability, target = tables.probability[band, here], tables.target[:, here] - block * _BLOCK
    ending = set(ORACLE_TASKS[task].events) | {chain.E_DEATH}
    goes_on = [event for event in range(chain.NUM_EVENTS) if event not in ending]
    weights = np.concatenate([1.0 - probability.sum(-1), *(probability[:, event] for event in goes_on)])
    columns = target[[chain.E_NONE, *goes_on]].ravel()
    rows = np.tile(np.arange(_BLOCK), len(goes_on) + 1)
    matrix = sparse.coo_array((weights, (rows, columns)), (_BLOCK, _BLOCK)).tocsr()
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
