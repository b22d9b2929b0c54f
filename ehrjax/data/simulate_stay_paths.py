"""The lives of hospital stays: hour by hour through the chain, with what each hour records.

Everything is a pure function of (seed, patient, stay, hour): see `simulate_random`.
"""

from typing import NamedTuple

import numpy as np

from ehrjax.data import simulate_stay_chain as chain
from ehrjax.data.simulate_random import Draws
from ehrjax.data.simulate_stay_notes import draw_statements
from ehrjax.data.stay_oracle import MAX_HOURS, StayRecord

STAY_SHARES = (0.75, 0.18, 0.07)  # patients with one, two, three stays; none follows a death
CHARTED, DICTATED = 0.96, 0.90  # share of stays with vital signs, with notes
NOTE_EVERY_HOURS, NOTE_WRITTEN, BY_PHYSICIAN = 8, 0.92, 0.35
HOUR, DAY = 3600, 86_400
START = np.datetime64("2018-01-01", "s").astype(np.int64)
FIRST_DAYS = 4 * 365  # in which first admissions fall
LAST_MINUTE = 54  # of an hour in which something is recorded; a stay ends after it
DISCHARGE, DEATH, INTENSIVE_CARE, VASOPRESSOR, VENTILATION = range(5)  # how a stay ends
_STRIDE = 512  # counters a stay: its hours, and one for the whole stay
_PATIENT = _STRIDE * len(STAY_SHARES)


class Stays(NamedTuple):
    """n stays by patient, then time. Times are int64 seconds since 1970."""

    patient: np.ndarray  # int64 [n], number of the patient
    ordinal: np.ndarray  # int64 [n], 0 for the first stay
    admission: np.ndarray  # on a full hour
    end: np.ndarray  # of what is recorded: deterioration or discharge
    ending: np.ndarray  # int64 [n], DISCHARGE, DEATH, ...
    has_vitals: np.ndarray  # bool [n]
    has_notes: np.ndarray  # bool [n]


def draws_of_patients(patients: np.ndarray, seed: int) -> Draws:
    """Draws that all stays of a patient share."""
    return Draws(seed, patients, np.full(len(patients), _PATIENT))


def draws_of_stays(stays: Stays, seed: int) -> Draws:
    """One cell a stay."""
    return _draws(stays.patient, stays.ordinal, MAX_HOURS, seed)


def draws_of_hours(stays: Stays, offsets: np.ndarray, seed: int) -> Draws:
    """One cell an hour of each stay."""
    stay, hour = hours_of(offsets)
    return _draws(stays.patient[stay], stays.ordinal[stay], hour, seed)


def hours_of(offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The stay of each hour, and its number in that stay (int64 each)."""
    stay = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return stay, np.arange(len(stay)) - offsets[stay]


def _draws(patient: np.ndarray, ordinal: np.ndarray, hour, seed: int) -> Draws:
    return Draws(seed, patient, ordinal * _STRIDE + hour)


def draw_stays(patients: np.ndarray, seed: int) -> tuple[Stays, StayRecord]:
    """Every stay of these patients (numbers, int64 [p]), and what each recorded, as statements and table rows."""
    shares = np.cumsum(STAY_SHARES)[:-1]
    num_stays = 1 + np.searchsorted(shares, draws_of_patients(patients, seed).uniform("stays"), side="right")
    patient = np.repeat(patients, num_stays)
    first = np.repeat(np.cumsum(num_stays) - num_stays, num_stays)
    ordinal = np.arange(len(patient)) - first
    num_hours, deteriorated, state, stay_of_hour = _walk(patient, ordinal, seed)
    at_stay = _draws(patient, ordinal, MAX_HOURS, seed)
    last_state = state[np.cumsum(num_hours) - 1]
    ending = np.where(deteriorated, _draw_ending(last_state, at_stay.uniform("ending")), DISCHARGE)
    admission = _draw_admissions(patient, ordinal, first, seed)
    seconds = np.floor(at_stay.uniform("end") * (60 * (59 - LAST_MINUTE))).astype(np.int64)
    end = admission + HOUR * (num_hours - 1) + 60 * (LAST_MINUTE + 1) + seconds
    charted, dictated = at_stay.uniform("charted") < CHARTED, at_stay.uniform("dictated") < DICTATED
    is_dead = ending == DEATH
    before = np.cumsum(is_dead) - is_dead
    keep = before == before[first]  # no stay follows a death
    stays = Stays(*(part[keep] for part in (patient, ordinal, admission, end, ending, charted, dictated)))
    offsets = np.concatenate([[0], np.cumsum(num_hours[keep])])
    return stays, _draw_record(stays, offsets, state[keep[stay_of_hour]], seed)


def _draw_admissions(patient, ordinal, first, seed: int) -> np.ndarray:
    """A first admission at any hour, each next one 30 to 210 days after that before (seconds since 1970)."""
    hours = np.floor(draws_of_patients(patient, seed).uniform("first") * FIRST_DAYS * 24).astype(np.int64)
    between = np.floor(_draws(patient, ordinal, MAX_HOURS, seed).uniform("between") * 180).astype(np.int64)
    days = np.cumsum(between)
    return START + HOUR * hours + DAY * (30 * ordinal + days - days[first])


def _walk(patient, ordinal, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Hours of each stay, whether it ended in deterioration; states and their stays, by stay, then hour."""
    worse, discharged = chain.hazards()
    to, entry = chain.transitions().T, chain.entry_distribution()[:, None]
    active = np.arange(len(patient))
    state = chain.draw_rows(entry, np.zeros_like(active), _draws(patient, ordinal, 0, seed).uniform("entry"))
    num_hours, deteriorated = np.full(len(patient), MAX_HOURS), np.zeros(len(patient), bool)
    log = []
    for hour in range(MAX_HOURS):
        log.append((state, active))
        draws = _draws(patient[active], ordinal[active], hour, seed)
        uniform = draws.uniform("leave")
        leaves = uniform < (worse + discharged)[state]
        num_hours[active[leaves]] = hour + 1
        deteriorated[active[uniform < worse[state]]] = True
        state = chain.draw_rows(to, state, draws.uniform("move"))[~leaves]
        active = active[~leaves]
    states, stays = (np.concatenate(column) for column in zip(*log, strict=True))
    order = np.argsort(stays, kind="stable")
    return num_hours, deteriorated, states[order], stays[order]


def _draw_ending(states: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """How a stay deteriorates in these states: the worse a system, the likelier what that system calls for."""
    levels = chain.levels_of(states)
    weights = np.ones((4, len(states)))
    weights[INTENSIVE_CARE - DEATH] += 3
    weights[VASOPRESSOR - DEATH] += levels["circulatory"] ** 2
    weights[VENTILATION - DEATH] += levels["respiratory"] ** 2
    running = np.cumsum(weights, 0) / weights.sum(0)
    return DEATH + (uniform >= running[:-1]).sum(0)


def _draw_record(stays: Stays, offsets: np.ndarray, state: np.ndarray, seed: int) -> StayRecord:
    stay, hour = hours_of(offsets)
    draws = draws_of_hours(stays, offsets, seed)
    vitals = np.zeros((len(state), len(chain.VITALS)), np.int16)
    charted = np.flatnonzero(stays.has_vitals[stay])
    for column, (name, table) in zip(vitals.T, chain.vital_tables().items(), strict=True):
        uniform = draws.take(charted).uniform(f"vital/{name}")
        column[charted] = chain.draw_rows(table.probability, state[charted], uniform)
    phase = 1 + np.floor(draws_of_stays(stays, seed).uniform("phase") * (NOTE_EVERY_HOURS - 1)).astype(np.int64)
    is_due = ((hour - phase[stay]) % NOTE_EVERY_HOURS == 0) & stays.has_notes[stay]
    note_row = np.flatnonzero(is_due & (draws.uniform("written") < NOTE_WRITTEN))
    at_note = draws.take(note_row)
    kind = (at_note.uniform("kind") < BY_PHYSICIAN).astype(np.int8)
    statements = draw_statements(state[note_row], kind, at_note)
    return StayRecord(offsets, state.astype(np.int16), vitals, stays.has_vitals, note_row, kind, statements)
