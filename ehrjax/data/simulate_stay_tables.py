"""Tables of simulated stays: MEDS events, notes, stays."""

import numpy as np
import pyarrow as pa

from ehrjax.data import simulate_stay_chain as chain
from ehrjax.data.events import BIRTH_CODE, DEATH_CODE, ENCOUNTER_END_PREFIX, ENCOUNTER_PREFIX
from ehrjax.data.simulate_stay_notes import KINDS
from ehrjax.data.simulate_stay_paths import (
    DAY,
    DEATH,
    DISCHARGE,
    INTENSIVE_CARE,
    VASOPRESSOR,
    VENTILATION,
    Stays,
)

TIME = pa.timestamp("us")
EVENTS = pa.schema(
    {
        "subject_id": pa.int64(),
        "time": TIME,
        "code": pa.string(),
        "numeric_value": pa.float32(),
        "visit_id": pa.int64(),
    }
)
NOTES = pa.schema(
    {"subject_id": pa.int64(), "time": TIME, "visit_id": pa.int64(), "kind": pa.string(), "text": pa.string()}
)
ENDINGS = {DISCHARGE: "discharge", DEATH: "death", INTENSIVE_CARE: "intensive_care", VASOPRESSOR: "vasopressor",
           VENTILATION: "ventilation"}  # fmt: skip
DETERIORATION_CODES = {
    DEATH: DEATH_CODE,
    INTENSIVE_CARE: "ICU_ADMISSION//Medical Intensive Care Unit (MICU)",
    VASOPRESSOR: "MEDICATION//RXNORM//7512",
    VENTILATION: "PROCEDURE//SNOMED//40617009",
}
_FEMALE, _MALE = "GENDER//F", "GENDER//M"
_ADMISSION, _LEAVE = f"{ENCOUNTER_PREFIX}inpatient", f"{ENCOUNTER_END_PREFIX}inpatient"
DESCRIPTIONS = {
    vital.code: f"{name.replace('_', ' ').capitalize()} ({vital.unit})" for name, vital in chain.VITALS.items()
} | {
    DETERIORATION_CODES[VASOPRESSOR]: "Norepinephrine",
    DETERIORATION_CODES[VENTILATION]: "Artificial respiration",
}
_CODES = (BIRTH_CODE, _FEMALE, _MALE, _ADMISSION, *DETERIORATION_CODES.values(), _LEAVE,
          *(vital.code for vital in chain.VITALS.values()))  # fmt: skip
_STATIC = np.iinfo(np.int64).min
_INTENSIVE_CARE_DAYS = 3  # of which nothing is recorded; the encounter ends after them


def visit_ids(stays: Stays) -> np.ndarray:
    """Identifier of each stay (int64 [n]), the same whatever else is simulated."""
    return stays.patient * 10 + stays.ordinal


def timestamps(seconds: np.ndarray) -> pa.Array:
    """Seconds since 1970 as Arrow timestamps."""
    return pa.array(seconds * 1_000_000, TIME)


def code_table() -> pa.Table:
    """MEDS's codes.parquet."""
    return pa.table({"code": list(DESCRIPTIONS), "description": list(DESCRIPTIONS.values())})


def stay_table(stays: Stays) -> pa.Table:
    """One row a stay: what there is of it, and how and when the ward's record of it ended."""
    return pa.table(
        {
            "subject_id": stays.patient,
            "visit_id": visit_ids(stays),
            "admission": timestamps(stays.admission),
            "end": timestamps(stays.end),
            "ending": pa.array([ENDINGS[ending] for ending in stays.ending.tolist()], pa.string()),
            "has_vitals": stays.has_vitals,
            "has_notes": stays.has_notes,
        }
    )


def note_table(stays: Stays, stay: np.ndarray, seconds: np.ndarray, kinds: np.ndarray, texts: list[str]) -> pa.Table:
    """One row a note, by subject, then time; `stay` (int [notes]) is its row in `stays`."""
    columns = [
        stays.patient[stay], timestamps(seconds), visit_ids(stays)[stay], pa.array(KINDS).take(pa.array(kinds)),
        pa.array(texts, pa.string()),
    ]  # fmt: skip
    return pa.table(columns, schema=NOTES)


def event_table(stays: Stays, vitals, stay_of_hour, taken, is_female, age_years) -> pa.Table:
    """MEDS events by subject, then time, static rows first.

    `vitals` int [hours, 6] are rows of `vital_tables`, 0 = not taken; `stay_of_hour` and `taken` (seconds) belong to
    its rows, `is_female` and `age_years` (at the first admission) to the stays.
    """
    parts = [*_person_parts(stays, is_female, age_years), *_stay_parts(stays)]
    for column, vital, table in zip(vitals.T, chain.VITALS.values(), chain.vital_tables().values(), strict=True):
        rows = np.flatnonzero(column)
        parts.append((stay_of_hour[rows], taken[rows], _code(vital.code, len(rows)), table.values[column[rows] - 1]))
    stay, seconds, code, value = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((code, seconds, stays.patient[stay]))
    stay, seconds, code, value = stay[order], seconds[order], code[order], value[order]
    is_personal = code <= _CODES.index(_MALE)
    columns = [
        stays.patient[stay],
        pa.array(np.where(seconds == _STATIC, 0, seconds) * 1_000_000, TIME, mask=seconds == _STATIC),
        pa.array(_CODES).take(pa.array(code)),
        pa.array(value, mask=np.isnan(value)),
        pa.array(visit_ids(stays)[stay], mask=is_personal),
    ]
    return pa.table(columns, schema=EVENTS)


def _code(name: str, count: int) -> np.ndarray:
    return np.full(count, _CODES.index(name), np.int8)


def _person_parts(stays: Stays, is_female, age_years) -> list[tuple]:
    """Sex and birth, (stay, seconds, code, value) each."""
    first = np.flatnonzero(stays.ordinal == 0)
    birth = (stays.admission[first] - np.floor(age_years[first] * 365.25).astype(np.int64) * DAY) // DAY * DAY
    sex = np.where(is_female[first], _CODES.index(_FEMALE), _CODES.index(_MALE)).astype(np.int8)
    nothing = np.full(len(first), np.nan, np.float32)
    return [
        (first, np.full(len(first), _STATIC), sex, nothing),
        (first, birth, _code(BIRTH_CODE, len(first)), nothing),
    ]


def _stay_parts(stays: Stays) -> list[tuple]:
    """Admission, deterioration and the encounter's end: some days later where the patient is moved or treated."""
    every = np.arange(len(stays.patient))
    nothing = np.full(len(every), np.nan, np.float32)
    goes_on = (stays.ending != DISCHARGE) & (stays.ending != DEATH)
    leave = stays.end + _INTENSIVE_CARE_DAYS * DAY * goes_on
    parts = [
        (every, stays.admission, _code(_ADMISSION, len(every)), nothing),
        (every, leave, _code(_LEAVE, len(every)), nothing),
    ]
    for ending, code in DETERIORATION_CODES.items():
        rows = np.flatnonzero(stays.ending == ending)
        parts.append((rows, stays.end[rows], _code(code, len(rows)), nothing[rows]))
    return parts
