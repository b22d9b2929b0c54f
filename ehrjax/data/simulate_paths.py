"""Simulated lives: each patient's weekly path through the chain, and the weeks in which there is an encounter.

Week k of a patient lies at `origin + 7 k days`; all that happens in it happens at one encounter that starts less than
20 hours later and ends less than five days later (a stay: that, plus its further weeks). So the 365 days after an
encounter's end hold the next 52 weeks exactly and 30 days hold the next four; the oracle knows where in its week an
encounter ends, and what other windows hold. The chain's probabilities are those of labels defined on time stamps.
"""

from typing import NamedTuple

import numpy as np

from ehrjax.data import simulate_chain as chain
from ehrjax.data.simulate_random import Draws

DAY, WEEK = 86_400, 7 * 86_400
FIRST_ENTRY = int(np.datetime64("2000-01-01T00:00:00", "s").astype(np.int64))
LAST_ENTRY = int(np.datetime64("2023-01-01T00:00:00", "s").astype(np.int64))
END = int(np.datetime64("2025-01-01T00:00:00", "s").astype(np.int64))  # observation ends here for everybody
ENTRY_AGES = ((0.0, 0.12, 0.30, 0.50, 0.70, 0.88, 1.0), (0.0, 15.0, 26.0, 38.0, 50.0, 62.0, 80.0))  # quantile, years

# Why there is an encounter. The last three are events of the chain, so they always are one.
ENTRY, WELLNESS, FOLLOW_UP, ACUTE, SERIES, CHANGE, STEROID, STAY = range(8)
WELLNESS_A_YEAR = (1.1, 0.35, 0.35, 0.4, 0.5, 0.6, 0.7, 0.7)
ACUTE_A_YEAR = (0.8, 0.5, 0.45, 0.45, 0.45, 0.45, 0.5, 0.5)
SERIES_START = {ACUTE: 0.22, FOLLOW_UP: 0.10, STAY: 0.5}  # chance that a visit starts a series of therapy visits
SERIES_A_WEEK, SERIES_STOP = 0.6, 0.14


class Patients(NamedTuple):
    """n patients; `state` is the chain's state when observation begins."""

    number: np.ndarray  # int64 [n], 0, 1, 2, ...: with the seed it fixes everything about the patient
    origin: np.ndarray  # int64 [n], seconds since 1970 at which week 0 begins (a midnight)
    age_weeks: np.ndarray  # int64 [n], age in whole weeks at week 0
    num_weeks: np.ndarray  # int64 [n], weeks of observation
    state: np.ndarray  # int32 [n]
    log_likelihood: np.ndarray  # float32 [n, 4], log P(state | subtype, sex, age)


class Visits(NamedTuple):
    """v encounters, by patient and week."""

    patient: np.ndarray  # int64 [v], row in Patients
    week: np.ndarray  # int64 [v]
    kind: np.ndarray  # int8 [v], ENTRY .. STAY
    event: np.ndarray  # int8 [v], the chain's event in this week, E_NONE where the visit has no part in it
    state: np.ndarray  # int32 [v], after the week's event (a stay: at discharge)
    stay_weeks: np.ndarray  # int64 [v], further weeks of a stay, else 0
    log_likelihood: np.ndarray  # float32 [v, 4], log P(path up to here | each subtype)


class Paths(NamedTuple):
    """What `simulate_paths` returns; `death_week` is -1 for who lives to the end of observation."""

    patients: Patients
    visits: Visits
    death_week: np.ndarray  # int64 [n]


def simulate_paths(numbers: np.ndarray, seed: int) -> Paths:
    """Lives of the patients with these numbers (int64 [n]): a pure function of each number and the seed."""
    patients = draw_patients(np.asarray(numbers, np.int64), seed)
    log, death_week = _walk(patients, seed)
    columns = [np.concatenate(parts) for parts in zip(*log, strict=True)]
    order = np.lexsort((columns[1], columns[0]))
    patient, week, kind, event, state, likelihood = (column[order] for column in columns)
    stay_weeks = np.maximum(event - chain.E_STAY_0, 0) * (kind == STAY)
    return Paths(
        patients,
        Visits(patient, week, kind, event, chain.after_stay(state), stay_weeks.astype(np.int64), likelihood),
        death_week,
    )


def draw_patients(numbers: np.ndarray, seed: int) -> Patients:
    """Sex, subtype, dates and entry states."""
    draws = Draws(seed, numbers, np.zeros_like(numbers))
    subtype = np.searchsorted(np.cumsum(chain.SUBTYPE_PRIOR)[:-1], draws.uniform("subtype"), side="right")
    sex = (draws.uniform("sex") < 0.49).astype(np.int64)
    years = np.interp(draws.uniform("age"), *ENTRY_AGES)
    age_weeks = np.floor(years * chain.WEEKS_PER_YEAR).astype(np.int64)
    days = (LAST_ENTRY - FIRST_ENTRY) // DAY
    origin = FIRST_ENTRY + np.floor(draws.uniform("entry") * days).astype(np.int64) * DAY
    state, likelihood = _draw_entry(draws, subtype, sex, age_weeks)
    return Patients(numbers, origin, age_weeks, (END - DAY - origin) // WEEK + 1, state, likelihood)


def _draw_entry(draws: Draws, subtype, sex, age_weeks) -> tuple[np.ndarray, np.ndarray]:
    """Entry states and their log-likelihood [n, 4] under every subtype."""
    rows = np.arange(len(sex))
    distribution = chain.entry_distribution(age_weeks)
    fields = {"subtype": subtype, "sex": sex, "phase": np.full_like(sex, chain.NO_PHASE)}
    levels = distribution["glycaemia"]
    thresholds = np.cumsum(levels[rows, subtype, sex], -1)[:, :-1]
    fields["glycaemia"] = (draws.uniform("entry/glycaemia")[:, None] >= thresholds).sum(1)
    likelihood = np.log(np.maximum(levels[rows, :, sex, fields["glycaemia"]], 1e-30))
    for disease in chain.DISEASES:
        present = distribution[disease]
        fields[disease] = (draws.uniform(f"entry/{disease}") < present[rows, subtype, sex]).astype(np.int64)
        share = np.where(fields[disease][:, None] == 1, present[rows, :, sex], 1 - present[rows, :, sex])
        likelihood = likelihood + np.log(np.maximum(share, 1e-30))
    return chain.index_of(fields), likelihood.astype(np.float32)


def visit_rates() -> np.ndarray:
    """Chance of an ordinary visit in a week, running sum over (wellness, follow-up, acute) [NUM_BANDS, NUM_STATES, 3].

    It depends on the recorded state only, not on the subtype, so that the fact of a visit says nothing about it.
    """
    fields = chain.fields_of(np.arange(chain.NUM_STATES))
    chronic = sum(fields[disease] for disease in chain.DISEASES) + 0.8 * (fields["glycaemia"] == chain.DIABETES)
    watched = (fields["glycaemia"] > chain.NORMAL) & (fields["glycaemia"] < chain.DIABETES)
    recovering = fields["phase"] >= chain.STAY
    follow_up = 0.1 + 0.4 * chronic + 0.8 * watched + 5.0 * recovering
    acute = 1.0 + 0.35 * fields["copd"] + 0.2 * fields["heart"]
    rates = [
        np.stack([np.full(chain.NUM_STATES, WELLNESS_A_YEAR[band]), follow_up, ACUTE_A_YEAR[band] * acute], -1)
        for band in range(chain.NUM_BANDS)
    ]
    return np.cumsum(np.stack(rates) / chain.WEEKS_PER_YEAR, -1).astype(np.float32)


def _walk(patients: Patients, seed: int) -> tuple[list, np.ndarray]:
    """All patients week by week; returns the visits as parts of columns, and the weeks of death."""
    tables, rates = chain.build_chain(), visit_rates()
    state = patients.state.copy()
    likelihood = patients.log_likelihood.copy()
    in_series = np.zeros(len(state), bool)
    death_week = np.full(len(state), -1, np.int64)
    log = []
    for week in range(int(patients.num_weeks.max(initial=0))):
        rows = np.flatnonzero((week < patients.num_weeks) & (death_week < 0))
        draws = Draws(seed, patients.number[rows], np.full(len(rows), week))
        band = chain.bands_of(patients.age_weeks[rows] + week)
        if week:
            event = _step(tables, band, rows, state, likelihood, draws)
            kind = _visit_kinds(rates, band, event, state[rows], in_series[rows], draws)
        else:
            event, kind = np.full(len(rows), chain.E_NONE), np.full(len(rows), ENTRY)
        death_week[rows[event == chain.E_DEATH]] = week
        in_series[rows] = _continue_series(kind, in_series[rows], draws)
        seen = np.flatnonzero(kind >= 0)
        who = rows[seen]
        log.append((who, np.full(len(who), week), kind[seen], event[seen], state[who], likelihood[who]))
    return log, death_week


def _step(tables: chain.Chain, band, rows, state, likelihood, draws) -> np.ndarray:
    """One week of the chain for `rows`: updates `state` and `likelihood` in place, returns the events."""
    now = state[rows]
    uniform = draws.uniform("event")
    others = now[:, None] % chain.STATES_A_SUBTYPE + np.arange(len(chain.SUBTYPES)) * chain.STATES_A_SUBTYPE
    step = tables.log_none[band[:, None], others]
    event = np.full(len(rows), chain.E_NONE)
    some = np.flatnonzero(uniform < tables.cumulative[band, now, -1])
    event[some] = (uniform[some, None] >= tables.cumulative[band[some], now[some]]).sum(1)
    step[some] = np.log(tables.probability[band[some, None], others[some], event[some, None]])
    likelihood[rows] += step
    state[rows] = tables.target[event, now]
    return event


def _visit_kinds(rates, band, event, state, in_series, draws) -> np.ndarray:
    """Kind of each patient's visit this week, -1 for none; an event of the chain comes before an ordinary visit."""
    uniform = draws.uniform("visit")
    kind = WELLNESS + (uniform[:, None] >= rates[band, state]).sum(1)
    kind[kind > ACUTE] = -1
    kind[in_series & (draws.uniform("series") < SERIES_A_WEEK)] = SERIES
    phase = state % chain.NUM_PHASES
    discharge_week = (event == chain.E_NONE) & ((phase == chain.STAY) | (phase == chain.REPEAT))
    kind[(event == chain.E_DEATH) | (phase >= chain.IN_STAY) | discharge_week] = -1
    kind[event < chain.E_STEROID] = CHANGE
    kind[event == chain.E_STEROID] = STEROID
    kind[(event >= chain.E_STAY_0) & (event <= chain.E_STAY_2)] = STAY
    return kind


def _continue_series(kind, in_series, draws) -> np.ndarray:
    start = np.zeros(len(kind), np.float32)
    for which, share in SERIES_START.items():
        start[kind == which] = share
    goes_on = in_series & (draws.uniform("series/stop") >= SERIES_STOP)
    return goes_on | (draws.uniform("series/start") < start)
