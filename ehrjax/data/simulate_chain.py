"""The simulator's generative model: a finite Markov chain with one step a week, written as tables of hazards.

A patient's state is (subtype, sex, glycaemia, obesity, hypertension, kidney disease, heart failure, COPD, acute phase),
41,216 combinations under one flat index; age enters through bands. In a week at most one event happens: a glycaemic
level up or down, diabetes, another onset, a steroid course, a hospital stay of 0, 1 or 2 further weeks, or death. The
latent subtype is never recorded; every other part of the state is, because each event is an encounter that codes it.

Two things make the future depend on more than which codes a record holds: the glycaemic level goes down as well as up
(what counts is the last level, and whether it was reached from below), and the acute phase counts the weeks since the
last steroid course or stay, which raise several hazards for six weeks.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

WEEKS_PER_YEAR = 365.25 / 7
BAND_YEARS = (18, 30, 40, 50, 60, 70, 80)  # ages at which hazards change
BAND_WEEKS = np.array([round(year * WEEKS_PER_YEAR) for year in BAND_YEARS])
NUM_BANDS = len(BAND_YEARS) + 1

SUBTYPES = ("metabolic", "cardiac", "respiratory", "resilient")
SUBTYPE_PRIOR = np.array([0.28, 0.24, 0.20, 0.28])
SEXES = ("F", "M")

NORMAL, IMPAIRED_UP, IMPAIRED_DOWN, PREDIABETES_UP, PREDIABETES_DOWN, HIGH_RISK, DIABETES = range(7)
LEVEL = np.array([0, 1, 1, 2, 2, 3, 4])  # the glycaemic level without its direction
_UP = np.array([IMPAIRED_UP, PREDIABETES_UP, PREDIABETES_UP, HIGH_RISK, HIGH_RISK, HIGH_RISK, DIABETES])
_DOWN = np.array([NORMAL, NORMAL, NORMAL, IMPAIRED_DOWN, IMPAIRED_DOWN, PREDIABETES_DOWN, DIABETES])

DISEASES = ("obesity", "hypertension", "kidney", "heart", "copd")

# Acute phase: none, six weeks after a steroid course, after a first stay, after a repeated stay, and (in hospital)
# one or two more weeks to go of a first or a repeated stay.
PHASE_WEEKS = 6
NO_PHASE, STEROID, STAY, REPEAT = 0, 1, 1 + PHASE_WEEKS, 1 + 2 * PHASE_WEEKS
IN_STAY, IN_REPEAT = 1 + 3 * PHASE_WEEKS, 3 + 3 * PHASE_WEEKS
NUM_PHASES = 5 + 3 * PHASE_WEEKS

SHAPE = (len(SUBTYPES), len(SEXES), 7, 2, 2, 2, 2, 2, NUM_PHASES)
NUM_STATES = int(np.prod(SHAPE))
STATES_A_SUBTYPE = NUM_STATES // len(SUBTYPES)
FIELDS = ("subtype", "sex", "glycaemia", *DISEASES, "phase")

E_UP, E_DOWN, E_DIABETES, E_OBESITY, E_HYPERTENSION, E_KIDNEY, E_HEART, E_COPD = range(8)
E_STEROID, E_STAY_0, E_STAY_1, E_STAY_2, E_DEATH, E_NONE = range(8, 14)
NUM_EVENTS = E_NONE  # competing events; E_NONE is the rest of the probability
STAY_EVENTS = (E_STAY_0, E_STAY_1, E_STAY_2)

# Events a year, by age band: under 18, 18-29, 30-39, ..., 70-79, 80 and over.
HAZARDS = {
    "up": (0.040, 0.080, 0.110, 0.130, 0.150, 0.160, 0.160, 0.140),
    "obesity": (0.006, 0.016, 0.020, 0.022, 0.020, 0.014, 0.008, 0.004),
    "hypertension": (0.0005, 0.008, 0.018, 0.035, 0.055, 0.070, 0.080, 0.080),
    "kidney": (0.0001, 0.0005, 0.001, 0.003, 0.006, 0.013, 0.024, 0.035),
    "heart": (0.0001, 0.0002, 0.0005, 0.002, 0.004, 0.010, 0.022, 0.035),
    "copd": (0.0001, 0.0005, 0.002, 0.005, 0.010, 0.015, 0.018, 0.018),
    "steroid": (0.030, 0.040, 0.050, 0.050, 0.060, 0.060, 0.060, 0.050),
    "stay": (0.025, 0.030, 0.030, 0.035, 0.045, 0.065, 0.100, 0.160),
    "death": (0.0002, 0.0005, 0.0008, 0.0015, 0.0035, 0.0080, 0.0210, 0.0700),
}
ENTRY_DIABETES = (0.0, 0.001, 0.002, 0.004, 0.007, 0.009, 0.009, 0.008)  # only for who has it when observation begins
DIABETES_AGE = (0.5, 0.9, 0.95, 1.0, 1.05, 1.1, 1.1, 1.0)
DIABETES_BY_GLYCAEMIA = (0.006, 0.030, 0.012, 0.200, 0.040, 0.600, 0.0)  # a year, by glycaemia
UP_FROM = (0.0, 1.0, 0.27, 1.0, 0.27, 0.0, 0.0)  # a year; from NORMAL by age (HAZARDS), from HIGH_RISK up is diabetes
DOWN_FROM = (0.0, 0.5, 1.5, 0.5, 1.5, 1.3, 0.0)

BY_SUBTYPE = {
    "up": (1.4, 1.05, 0.95, 0.7),
    "diabetes": (1.7, 1.0, 0.85, 0.55),
    "obesity": (1.8, 1.1, 0.8, 0.6),
    "hypertension": (1.2, 1.8, 0.9, 0.5),
    "kidney": (1.1, 1.8, 0.9, 0.5),
    "heart": (0.9, 2.0, 1.1, 0.4),
    "copd": (0.7, 0.9, 2.4, 0.4),
    "steroid": (0.8, 1.0, 1.7, 0.8),
    "stay": (1.0, 1.3, 1.5, 0.6),
    "death": (1.1, 1.4, 1.2, 0.6),
}
BY_SEX = {
    "up": (0.95, 1.05),
    "diabetes": (0.9, 1.1),
    "obesity": (1.1, 0.9),
    "hypertension": (0.9, 1.1),
    "kidney": (1.0, 1.0),
    "heart": (0.8, 1.2),
    "copd": (0.9, 1.1),
    "steroid": (1.1, 0.9),
    "stay": (1.0, 1.0),
    "death": (0.85, 1.2),
}
# What else multiplies a hazard: a present disease, diabetes, or an acute phase.
BY_STATE = {
    "up": {"obesity": 1.4, "steroid": 3.0, "stay": 2.0, "repeat": 2.0},
    "diabetes": {"obesity": 1.4, "steroid": 4.0, "stay": 2.0, "repeat": 2.0},
    "obesity": {"steroid": 1.5},
    "hypertension": {"obesity": 1.8, "kidney": 2.0},
    "kidney": {"diabetes": 2.8, "hypertension": 2.0, "heart": 1.6},
    "heart": {"diabetes": 1.6, "hypertension": 2.0, "kidney": 1.6, "obesity": 1.3},
    "copd": {},
    "steroid": {"copd": 7.0},
    "stay": {"diabetes": 1.3, "kidney": 1.5, "heart": 2.4, "copd": 1.8, "steroid": 2.0, "stay": 7.0, "repeat": 14.0},
    "death": {"diabetes": 1.5, "kidney": 1.8, "heart": 2.8, "copd": 1.8, "stay": 3.0, "repeat": 6.0},
}
MAX_STAYS_A_YEAR = 8.0
LONG_STAY = {
    1: (0.12, 0.08),
    2: (0.03, 0.05),
}  # further weeks: chance, its rise for each of CKD, HF, COPD


class Chain(NamedTuple):
    """The model as tables over the flat state index."""

    probability: np.ndarray  # float64 [NUM_BANDS, NUM_STATES, NUM_EVENTS], of each event in a week
    cumulative: np.ndarray  # float32, its running sum over events
    log_none: np.ndarray  # float32 [NUM_BANDS, NUM_STATES], log probability of no event
    target: np.ndarray  # int32 [NUM_EVENTS + 1, NUM_STATES], the state after each event (death: unchanged)


def fields_of(states: np.ndarray) -> dict[str, np.ndarray]:
    """The parts of flat state indices, by name."""
    return dict(zip(FIELDS, np.unravel_index(states, SHAPE), strict=True))


def index_of(fields: dict[str, np.ndarray]) -> np.ndarray:
    """Flat state indices (int32) of parts."""
    return np.ravel_multi_index([fields[name] for name in FIELDS], SHAPE).astype(np.int32)


def bands_of(age_weeks: np.ndarray) -> np.ndarray:
    """Age band of an age in whole weeks."""
    return np.searchsorted(BAND_WEEKS, age_weeks, side="right")


def after_stay(states: np.ndarray) -> np.ndarray:
    """States at discharge, for states at admission (the weeks in between are skipped; nothing happens in them)."""
    fields = fields_of(states)
    phase = fields["phase"]
    fields["phase"] = np.where(phase >= IN_REPEAT, REPEAT, np.where(phase >= IN_STAY, STAY, phase))
    return index_of(fields)


def _multiplier(name: str, fields: dict[str, np.ndarray]) -> np.ndarray:
    phase = fields["phase"]
    present = {disease: fields[disease] == 1 for disease in DISEASES}
    present["diabetes"] = fields["glycaemia"] == DIABETES
    present["steroid"] = (phase >= STEROID) & (phase < STAY)
    present["stay"] = (phase >= STAY) & (phase < REPEAT)
    present["repeat"] = (phase >= REPEAT) & (phase < IN_STAY)
    factor = np.array(BY_SUBTYPE[name])[fields["subtype"]] * np.array(BY_SEX[name])[fields["sex"]]
    for cause, ratio in BY_STATE[name].items():
        factor = factor * np.where(present[cause], ratio, 1.0)
    return factor


def _rates(band: int, fields: dict[str, np.ndarray], multipliers: dict[str, np.ndarray]) -> np.ndarray:
    """Events a year [NUM_STATES, NUM_EVENTS] in one age band, before a stay is split by length."""
    glycaemia, phase = fields["glycaemia"], fields["phase"]
    rates = np.zeros((len(glycaemia), NUM_EVENTS))
    up_from = np.where(glycaemia == NORMAL, HAZARDS["up"][band], np.array(UP_FROM)[glycaemia])
    rates[:, E_UP] = up_from * multipliers["up"]
    rates[:, E_DOWN] = np.array(DOWN_FROM)[glycaemia]
    rates[:, E_DIABETES] = np.array(DIABETES_BY_GLYCAEMIA)[glycaemia] * DIABETES_AGE[band] * multipliers["diabetes"]
    for event, disease in enumerate(DISEASES, E_OBESITY):
        rates[:, event] = (fields[disease] == 0) * HAZARDS[disease][band] * multipliers[disease]
    rates[:, E_STEROID] = (phase < STAY) * HAZARDS["steroid"][band] * multipliers["steroid"]
    stays = np.minimum(HAZARDS["stay"][band] * multipliers["stay"], MAX_STAYS_A_YEAR)
    burden = fields["kidney"] + fields["heart"] + fields["copd"]
    long = {weeks: base + rise * burden for weeks, (base, rise) in LONG_STAY.items()}
    rates[:, E_STAY_0] = stays * (1 - long[1] - long[2])
    rates[:, E_STAY_1], rates[:, E_STAY_2] = stays * long[1], stays * long[2]
    rates[:, E_DEATH] = HAZARDS["death"][band] * multipliers["death"]
    return rates * (phase < IN_STAY)[:, None]  # nothing happens to who is in hospital


def _targets(fields: dict[str, np.ndarray]) -> np.ndarray:
    phase = fields["phase"]
    last_week = (phase > NO_PHASE) & (phase < IN_STAY) & (phase % PHASE_WEEKS == 0)
    tick = np.where((phase == NO_PHASE) | last_week, NO_PHASE, phase + 1)
    tick = np.select([phase == IN_STAY, phase == IN_STAY + 1, phase == IN_REPEAT, phase == IN_REPEAT + 1],
                     [STAY, IN_STAY, REPEAT, IN_REPEAT], tick)  # fmt: skip
    again = (phase >= STAY) & (phase < IN_STAY)
    changes = {event: {disease: np.ones_like(phase)} for event, disease in enumerate(DISEASES, E_OBESITY)}
    changes |= {E_UP: {"glycaemia": _UP[fields["glycaemia"]]}, E_DOWN: {"glycaemia": _DOWN[fields["glycaemia"]]}}
    changes |= {E_DIABETES: {"glycaemia": np.full_like(phase, DIABETES)}, E_NONE: {}, E_DEATH: {"phase": phase}}
    changes |= {E_STEROID: {"phase": np.full_like(phase, STEROID)}}
    changes |= {E_STAY_0: {"phase": np.where(again, REPEAT, STAY)}}
    changes |= {E_STAY_1: {"phase": np.where(again, IN_REPEAT, IN_STAY)}}
    changes |= {E_STAY_2: {"phase": np.where(again, IN_REPEAT + 1, IN_STAY + 1)}}
    return np.stack([index_of(fields | {"phase": tick} | changes[event]) for event in range(NUM_EVENTS + 1)])


@lru_cache(maxsize=1)
def build_chain() -> Chain:
    """The tables of the model; about 70 MB, made once a process."""
    fields = fields_of(np.arange(NUM_STATES))
    multipliers = {name: _multiplier(name, fields) for name in BY_STATE}
    rates = np.stack([_rates(band, fields, multipliers) for band in range(NUM_BANDS)])
    probability = rates / WEEKS_PER_YEAR
    total = probability.sum(-1)
    assert total.max() < 0.5, f"weekly hazards must stay well below one, found {total.max():.2f}"
    cumulative = np.cumsum(probability, -1).astype(np.float32)
    return Chain(probability, cumulative, np.log1p(-total).astype(np.float32), _targets(fields))


def entry_distribution(age_weeks: np.ndarray) -> dict[str, np.ndarray]:
    """P(state | subtype, sex) when observation begins at an age: diseases independent of each other.

    Returns `disease -> [n, 4, 2]` for the five diseases and `glycaemia -> [n, 4, 2, 7]`; the acute phase is none.
    """
    edges = np.concatenate([[0], BAND_WEEKS])
    upper = np.concatenate([BAND_WEEKS, [1 << 20]])
    spent = np.clip(np.asarray(age_weeks)[:, None] - edges, 0, upper - edges) / WEEKS_PER_YEAR  # years in each band

    def lived(name, by_band):
        factor = np.outer(BY_SUBTYPE[name], BY_SEX[name])
        return 1.0 - np.exp(-(spent @ np.array(by_band))[:, None, None] * factor)

    result = {disease: lived(disease, HAZARDS[disease]) for disease in DISEASES}
    diabetes = lived("diabetes", ENTRY_DIABETES)
    raised = 0.5 * lived("up", HAZARDS["up"])
    shares = np.array([0.34, 0.16, 0.22, 0.14, 0.14])
    levels = np.concatenate([(1 - raised)[..., None], raised[..., None] * shares], -1) * (1 - diabetes)[..., None]
    return result | {"glycaemia": np.concatenate([levels, diabetes[..., None]], -1)}


def parameters() -> dict:
    """Every number of the chain, for the record that is kept with a simulation."""
    names = ("HAZARDS", "BY_SUBTYPE", "BY_SEX", "BY_STATE", "ENTRY_DIABETES", "DIABETES_AGE", "DIABETES_BY_GLYCAEMIA",
             "UP_FROM", "DOWN_FROM", "MAX_STAYS_A_YEAR", "LONG_STAY", "BAND_YEARS", "SUBTYPES")  # fmt: skip
    return {name.lower(): globals()[name] for name in names} | {"subtype_prior": SUBTYPE_PRIOR.tolist()}
