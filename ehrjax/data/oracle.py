"""True probabilities of the simulator's outcomes, exact under its generative model.

For a state s of the chain and h weeks to go, f(s, h) = sum over events e of p(e | s, age band) x [1 if e is the
outcome, 0 if it is another death, f(s after e, h - 1) otherwise], solved backward from f(s, 0) = 0 by sparse matrix
products over all states of a subtype and sex at once, with the age band of each coming week. For a time-to-event task
this is the cumulative incidence at its horizon, death competing. Two forms:

- `probability_latent` is f at the true state, subtype included.
- `probability_recorded` is the mean of f over P(subtype | record): Bayes' rule on everything recorded up to the index
  time that depends on the subtype, which is the state at entry, each week's event or its absence, and the codes drawn
  from the pools of `simulate_records`. No predictor that reads the record can be better in expectation.

A window of so many days may end within a week, where an event counts if its hour comes first: the hour is uniform and
independent of all else, so the answer lies between f(s, h) and f(s, h + 1) by the chance of that (`weeks_ahead`).
"""

from collections.abc import Collection
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import sparse

from ehrjax.data import simulate_chain as chain

DAY, WEEK = 86_400, 7 * 86_400
LATEST_OFFSET = 5 * DAY  # every encounter ends that early in its week, see `simulate_paths`
# When in its week an event is recorded (seconds): uniform from the first number, over so many (`simulate_tables`).
CODED_HOURS, DEATH_HOURS = (7 * 3600, 12 * 3600), (0, 20 * 3600)


class OracleTask(NamedTuple):
    """An outcome of the chain, the first of some events, within a number of days after the index time."""

    events: tuple[int, ...]
    horizon_days: int


_YEAR, _THREE_YEARS = 365, 1095
ORACLE_TASKS = {
    "diabetes_onset": OracleTask((chain.E_DIABETES,), _YEAR),
    "mortality_1y": OracleTask((chain.E_DEATH,), _YEAR),
    "readmission_30d": OracleTask(chain.STAY_EVENTS, 30),
    "time_to_diabetes": OracleTask((chain.E_DIABETES,), _THREE_YEARS),
    "time_to_ckd_hf": OracleTask((chain.E_KIDNEY, chain.E_HEART), _THREE_YEARS),
    "time_to_readmission": OracleTask(chain.STAY_EVENTS, 90),
    "time_to_death": OracleTask((chain.E_DEATH,), _THREE_YEARS),
    "conditions_1y--diabetes": OracleTask((chain.E_DIABETES,), _YEAR),
    "conditions_1y--hypertension": OracleTask((chain.E_HYPERTENSION,), _YEAR),
    "conditions_1y--kidney_disease": OracleTask((chain.E_KIDNEY,), _YEAR),
    "conditions_1y--heart_failure": OracleTask((chain.E_HEART,), _YEAR),
    "conditions_1y--copd": OracleTask((chain.E_COPD,), _YEAR),
}
_PART_OF_EVENT = {chain.E_DIABETES: ("glycaemia", chain.DIABETES)} | {
    event: (disease, 1) for event, disease in enumerate(chain.DISEASES, chain.E_OBESITY)
}  # what a patient has from the event on, and never loses
_BLOCK = chain.STATES_A_SUBTYPE // len(chain.SEXES)  # states of one subtype and sex, which nobody leaves


def at_risk(events: tuple[int, ...], states: np.ndarray) -> np.ndarray:
    """Whether states (flat, int [n]) have none of the diseases that these events begin (bool [n])."""
    fields = chain.fields_of(np.asarray(states))
    has = [fields[part] == value for part, value in (_PART_OF_EVENT[e] for e in events if e in _PART_OF_EVENT)]
    return ~np.any(has, axis=0) if has else np.ones(len(states), bool)


def tasks_by_events(tasks: Collection[str] | None = None) -> dict[tuple[int, ...], tuple[str, ...]]:
    """The tasks of `ORACLE_TASKS` by their events: those of the same events are solved together.

    `tasks` keeps those of these names, with all conditions of a task that has several; it may hold others.
    """
    groups: dict[tuple[int, ...], tuple[str, ...]] = {}
    for name, task in ORACLE_TASKS.items():
        if tasks is None or name.split("--")[0] in tasks:
            groups[task.events] = (*groups.get(task.events, ()), name)
    return groups


def weeks_ahead(task: str, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weeks (int64 [n]) whose events all fall into the task's window, and the chance (float64 [n]) of the next week's.

    `offset` (int [n]) is the index time in seconds since the start of its week.
    """
    events, horizon_days = ORACLE_TASKS[task]
    first, length = DEATH_HOURS if events == (chain.E_DEATH,) else CODED_HOURS
    last_second = np.asarray(offset, np.int64) + horizon_days * DAY
    weeks = (last_second - (first + length - 1)) // WEEK
    within_next = last_second - (weeks + 1) * WEEK - first + 1
    return weeks, np.clip(within_next / length, 0.0, 1.0)


def probability_by_subtype(tasks: tuple[str, ...], states, age_weeks, offset) -> np.ndarray:
    """P(outcome within the task's horizon | state, subtype) for tasks of the same events, float64 [tasks, n, 4].

    `states` (flat, int [n]) hold at the index time; `age_weeks` (int [n]) is the age in the week of the index time and
    `offset` (int [n]) the seconds since that week began. Raises KeyError for a task that is not in `ORACLE_TASKS`,
    ValueError for tasks of different events, or where a state has the outcome already.
    """
    different = {ORACLE_TASKS[task].events for task in tasks}
    events = different.pop()
    if different or not at_risk(events, states).all():
        raise ValueError(f"{tasks} must have the same events, and states be at_risk of them.")
    weeks, chance = (np.concatenate(part) for part in zip(*(weeks_ahead(task, offset) for task in tasks), strict=True))
    states, next_week = np.tile(states, len(tasks)), np.tile(age_weeks, len(tasks)) + 1
    max_weeks = max((ORACLE_TASKS[task].horizon_days * DAY + LATEST_OFFSET) // WEEK + 1 for task in tasks)
    band = chain.bands_of(next_week)
    ends = np.append(chain.BAND_WEEKS, np.iinfo(np.int64).max)[band]
    ahead = _Ahead(states % _BLOCK, weeks, chance, ends - next_week)
    sex = states // _BLOCK % len(chain.SEXES)
    result = np.empty((len(states), len(chain.SUBTYPES)))
    for present_sex in np.unique(sex):
        for subtype in range(len(chain.SUBTYPES)):
            solver = _Solver(events, subtype * len(chain.SEXES) + int(present_sex), max_weeks)
            for present_band in np.unique(band[sex == present_sex]):
                rows = np.flatnonzero((band == present_band) & (sex == present_sex))
                result[rows, subtype] = solver.solve(int(present_band), ahead.take(rows))
    return result.reshape(len(tasks), -1, len(chain.SUBTYPES))


class _Ahead(NamedTuple):
    """What f is asked for, as columns over rows."""

    within: np.ndarray  # state within its block
    weeks: np.ndarray
    chance: np.ndarray  # of one week more
    weeks_left: np.ndarray  # how many of the coming weeks lie in the present age band

    def take(self, rows: np.ndarray) -> "_Ahead":
        return _Ahead(*(column[rows] for column in self))


class _Solver:
    """f for the states of one block (a subtype and sex) that are at risk of `events`, up to `max_weeks` ahead."""

    def __init__(self, events: tuple[int, ...], block: int, max_weeks: int):
        self.events, self.block, self.max_weeks = events, block, max_weeks
        self._one_band = lru_cache(maxsize=2)(self._solve_one_band)  # a method's own cache would keep every solver

    def solve(self, band: int, ahead: _Ahead) -> np.ndarray:
        """f of each row, all of them now in one age band."""
        states = _at_risk_positions(self.events, self.block)[ahead.within]
        one_band = self._one_band(band)
        crosses = ahead.weeks_left < ahead.weeks + (ahead.chance > 0)
        until = np.where(crosses, ahead.weeks_left, ahead.weeks)
        result = one_band[until, states]
        stays = np.flatnonzero(~crosses & (ahead.chance > 0))
        result[stays] += ahead.chance[stays] * (one_band[until[stays] + 1, states[stays]] - result[stays])
        rows = np.flatnonzero(crosses)
        if len(rows):
            result[rows] += self._after_crossing(band, states[rows], ahead.take(rows))
        return result

    def _after_crossing(self, band: int, states: np.ndarray, ahead: _Ahead) -> np.ndarray:
        """Chance of the outcome in those weeks ahead that lie in the next age band.

        f of the next band is smooth in the number of weeks, so some twenty columns span all of them to within 1e-7:
        walking these back into the present band, week by week, serves every row at once.
        """
        basis, weights = _compress(self._one_band(band + 1))
        matrix = _transitions(self.events, self.block, band)[0].astype(np.float32)
        result, carried = np.empty(len(states)), basis.astype(np.float32)
        for weeks in range(1, int(ahead.weeks_left.max()) + 1):
            carried = matrix @ carried
            here = np.flatnonzero(ahead.weeks_left == weeks)
            beyond, chance = ahead.weeks[here] - weeks, ahead.chance[here, None]
            mixed = (1 - chance) * weights[beyond] + chance * weights[np.minimum(beyond + 1, self.max_weeks)]
            result[here] = (carried[states[here]] * mixed).sum(1)
        return result

    def _solve_one_band(self, band: int) -> np.ndarray:
        """f for 0..max_weeks to go while all of them lie in one age band, float64 [max_weeks + 1, states]."""
        matrix, outcome = _transitions(self.events, self.block, band)
        values = np.zeros((self.max_weeks + 1, len(outcome)))
        for weeks in range(1, len(values)):
            values[weeks] = matrix @ values[weeks - 1] + outcome
        return values


def _compress(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(basis [n, r], weights [w, r]) of `values` [w, n], with values.T = basis @ weights.T up to 1e-7 of its norm."""
    scale, vectors = np.linalg.eigh(values @ values.T)
    weights = vectors[:, scale > 1e-14 * scale[-1]]
    return values.T @ weights, weights


@lru_cache(maxsize=2)
def _at_risk_positions(events: tuple[int, ...], block: int) -> np.ndarray:
    """Number of each state of a block among those at risk, -1 for the others."""
    risky = at_risk(events, np.arange(block * _BLOCK, (block + 1) * _BLOCK))
    return np.where(risky, np.cumsum(risky) - 1, -1)


@lru_cache(maxsize=2)
def _transitions(events: tuple[int, ...], block: int, band: int) -> tuple[sparse.csr_array, np.ndarray]:
    """Weekly transition probabilities among a block's states at risk, and the chance of the outcome from each."""
    tables, position = chain.build_chain(), _at_risk_positions(events, block)
    here = block * _BLOCK + np.flatnonzero(position >= 0)
    probability, target = tables.probability[band, here], tables.target[:, here] - block * _BLOCK
    goes_on = [event for event in range(chain.NUM_EVENTS) if event not in {*events, chain.E_DEATH}]
    weights = np.concatenate([1.0 - probability.sum(-1), *(probability[:, event] for event in goes_on)])
    columns = position[target[[chain.E_NONE, *goes_on]].ravel()]
    rows = np.tile(np.arange(len(here)), len(goes_on) + 1)
    matrix = sparse.coo_array((weights, (rows, columns)), (len(here), len(here))).tocsr()
    matrix.eliminate_zeros()
    return matrix, probability[:, list(events)].sum(-1)


def subtype_posterior(log_likelihood: np.ndarray) -> np.ndarray:
    """P(subtype | record), float64 [n, 4], from the record's log-likelihood under each subtype."""
    score = log_likelihood.astype(np.float64) + np.log(chain.SUBTYPE_PRIOR)
    score = np.exp(score - score.max(1, keepdims=True))
    return score / score.sum(1, keepdims=True)


def oracle_probabilities(
    tasks: tuple[str, ...], states, age_weeks, offset, log_likelihood
) -> tuple[np.ndarray, np.ndarray]:
    """(latent, recorded) probabilities, float32 [tasks, n] each; `log_likelihood` is [n, 4] up to the index time."""
    by_subtype = probability_by_subtype(tasks, states, age_weeks, offset)
    latent = by_subtype[:, np.arange(len(states)), np.asarray(states) // chain.STATES_A_SUBTYPE]
    recorded = (by_subtype * subtype_posterior(log_likelihood)).sum(-1)
    return latent.astype(np.float32), recorded.astype(np.float32)
